# Debian packages of any suite and architecture through apt, with a configuration of our own: the host's package state
# is neither used nor changed, and no root is needed. To be sourced.
#
#   apus_cache                                  prints the cache directory, made if missing
#   debian_fetch SUITE ARCH PACKAGE...          downloads packages; prints the .deb files' paths, one a line
#   debian_depends SUITE ARCH PACKAGE PATTERN   the first dependency of PACKAGE that matches PATTERN (a grep -E)
#   debian_fetch_all SUITE ARCH PACKAGE...      as debian_fetch, with all that the packages depend on
#   debian_extract FILE.deb DIRECTORY           unpacks a package

apus_cache() {
  local directory=${APUS_CACHE:-$HOME/.cache/apus}
  mkdir -p "$directory"
  printf '%s\n' "$directory"
}

# The mirror that this machine already uses for Debian.
debian_mirror() {
  local mirror
  mirror=$(grep -rhsE '^(URIs:|deb )' /etc/apt/sources.list /etc/apt/sources.list.d/ |
    sed -E 's/^URIs: *//; s/^deb +(\[[^]]*\] +)?//' | awk '{print $1}' | grep -E '/debian/?$' | head -n 1)
  if [ -z "$mirror" ]; then
    echo "fetch-guest: no Debian mirror in /etc/apt; add one, such as the installer would" >&2
    return 1
  fi
  printf '%s\n' "$mirror"
}

# Runs an apt command in the private configuration for SUITE and ARCH.
debian_apt() {
  local suite=$1 arch=$2 command=$3 root
  shift 3
  root=$(apus_cache)/apt/$suite-$arch
  mkdir -p "$root"/lists/partial "$root"/archives/partial
  "$command" -o Dir::Etc::sourcelist="$root/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::State::lists="$root/lists" -o Dir::Cache="$root" -o Dir::State::status=/dev/null \
    -o APT::Architecture="$arch" -o APT::Architectures="$arch" -o Acquire::Languages=none \
    -o APT::Sandbox::User="$(id -un)" "$@"
}

# Brings the package lists up to date, at most once a day.
debian_update() {
  local suite=$1 arch=$2 root mirror
  root=$(apus_cache)/apt/$suite-$arch
  mkdir -p "$root"
  if [ -n "$(find "$root/updated" -mtime -1 2>/dev/null)" ]; then return 0; fi
  mirror=$(debian_mirror) || return 1
  printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n' "$mirror" "$suite" \
    >"$root/sources.list"
  debian_apt "$suite" "$arch" apt-get -q update >&2 || return 1
  touch "$root/updated"
}

debian_fetch() {
  local suite=$1 arch=$2 package name directory
  shift 2
  debian_update "$suite" "$arch" || return 1
  directory=$(apus_cache)/debs/$suite-$arch
  mkdir -p "$directory"
  for package in "$@"; do
    name=$(debian_apt "$suite" "$arch" apt-get --print-uris download "$package" | awk '{print $2}') || return 1
    if [ ! -s "$directory/$name" ]; then
      (cd "$directory" && debian_apt "$suite" "$arch" apt-get -q download "$package" >&2) || return 1
    fi
    printf '%s\n' "$directory/$name"
  done
}

debian_depends() {
  local suite=$1 arch=$2 package=$3 pattern=$4
  debian_update "$suite" "$arch" || return 1
  debian_apt "$suite" "$arch" apt-cache depends "$package" | awk '/Depends:/ {print $2}' | grep -E "$pattern" |
    head -n 1
}

debian_extract() {
  mkdir -p "$2"
  dpkg-deb --extract "$1" "$2"
}

# Downloads packages with all that they depend on; prints the .deb files' paths.
debian_fetch_all() {
  local suite=$1 arch=$2 name directory
  shift 2
  debian_update "$suite" "$arch" || return 1
  directory=$(apus_cache)/apt/$suite-$arch/archives
  debian_apt "$suite" "$arch" apt-get -q -y --no-install-recommends --download-only install "$@" >&2 || return 1
  debian_apt "$suite" "$arch" apt-get -y --no-install-recommends --print-uris --reinstall -o Dir::Cache::archives=/nonexistent \
    install "$@" 2>/dev/null | awk '/^\x27/ {print $2}' | while read -r name; do printf '%s\n' "$directory/$name"; done
}
