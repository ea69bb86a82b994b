/// How a system call is carried out.
public enum SyscallKind: UInt8, Sendable {
  /// The host's call of the same meaning, argument for argument.
  case direct
  /// The same, and it may block: a signal for the guest interrupts it, and it is restarted where SA_RESTART says so.
  case blocking
  /// The same, but never restarted after a handler has run.
  case waiting
  /// Code of ours.
  case emulated
  /// ENOSYS for now.
  case planned
}

/// One system call. What it does is known by the generic Linux ABI's number, which 64-bit RISC-V and AArch64 use as it is.
public struct SyscallRow: Sendable {
  public let number: Int
  public let name: StaticString
  /// The host's (x86-64) number; -1 where it has none.
  public let host: Int
  public let kind: SyscallKind
  /// What the arguments are, a letter each: d decimal, x hexadecimal, o octal, p pointer, s string, n a file's name,
  /// q bytes (counted by the next argument), f directory descriptor, g signal; capitals are flags (`SyscallFlags`). Names
  /// of files are looked up in the guest's view.
  public let arguments: StaticString
  /// The arguments that are names of files, a bit each.
  var names: UInt8 {
    arguments.withUTF8Buffer { letters in
      var bits: UInt8 = 0
      for (index, letter) in letters.enumerated() where letter == UInt8(ascii: "n") { bits |= 1 << index }
      return bits
    }
  }
  public init(
    _ number: Int, _ name: StaticString, _ host: Int, _ kind: SyscallKind, _ arguments: StaticString
  ) {
    (self.number, self.name, self.host, self.kind, self.arguments) = (number, name, host, kind, arguments)
  }
}

// The numbers are asm-generic/unistd.h's [Linux UAPI]. Guest addresses are host addresses and both ABIs are 64-bit
// and little-endian, so that most structures need no conversion: what differs is `.emulated`.
public let genericSyscalls: [SyscallRow] = [
  // Asynchronous I/O and extended attributes
  SyscallRow(0, "io_setup", 206, .direct, "xp"),
  SyscallRow(1, "io_destroy", 207, .direct, "x"),
  SyscallRow(2, "io_submit", 209, .direct, "xxp"),
  SyscallRow(3, "io_cancel", 210, .direct, "xpp"),
  SyscallRow(4, "io_getevents", 208, .waiting, "xddpp"),
  SyscallRow(5, "setxattr", 188, .direct, "nspxx"),
  SyscallRow(6, "lsetxattr", 189, .direct, "nspxx"),
  SyscallRow(7, "fsetxattr", 190, .direct, "dspxx"),
  SyscallRow(8, "getxattr", 191, .direct, "nspx"),
  SyscallRow(9, "lgetxattr", 192, .direct, "nspx"),
  SyscallRow(10, "fgetxattr", 193, .direct, "dspx"),
  SyscallRow(11, "listxattr", 194, .direct, "npx"),
  SyscallRow(12, "llistxattr", 195, .direct, "npx"),
  SyscallRow(13, "flistxattr", 196, .direct, "dpx"),
  SyscallRow(14, "removexattr", 197, .direct, "ns"),
  SyscallRow(15, "lremovexattr", 198, .direct, "ns"),
  SyscallRow(16, "fremovexattr", 199, .direct, "ds"),
  // Descriptors and files
  SyscallRow(17, "getcwd", 79, .direct, "px"),
  SyscallRow(18, "lookup_dcookie", 212, .planned, "xpx"),
  SyscallRow(19, "eventfd2", 290, .direct, "xx"),
  SyscallRow(20, "epoll_create1", 291, .direct, "x"),
  SyscallRow(21, "epoll_ctl", 233, .emulated, "dddp"),
  SyscallRow(22, "epoll_pwait", 281, .emulated, "dpddpx"),
  SyscallRow(23, "dup", 32, .direct, "d"),
  SyscallRow(24, "dup3", 292, .emulated, "ddO"),
  SyscallRow(25, "fcntl", 72, .emulated, "ddx"),
  SyscallRow(26, "inotify_init1", 294, .direct, "x"),
  SyscallRow(27, "inotify_add_watch", 254, .direct, "dnx"),
  SyscallRow(28, "inotify_rm_watch", 255, .direct, "dd"),
  SyscallRow(29, "ioctl", 16, .emulated, "dxp"),
  SyscallRow(30, "ioprio_set", 251, .direct, "xdx"),
  SyscallRow(31, "ioprio_get", 252, .direct, "xd"),
  SyscallRow(32, "flock", 73, .blocking, "dx"),
  SyscallRow(33, "mknodat", 259, .direct, "fnox"),
  SyscallRow(34, "mkdirat", 258, .direct, "fno"),
  SyscallRow(35, "unlinkat", 263, .direct, "fnA"),
  SyscallRow(36, "symlinkat", 266, .direct, "sfn"),
  SyscallRow(37, "linkat", 265, .direct, "fnfnA"),
  SyscallRow(38, "renameat", 264, .direct, "fnfn"),
  SyscallRow(39, "umount2", 166, .direct, "nx"),
  SyscallRow(40, "mount", 165, .direct, "nnsxp"),
  SyscallRow(41, "pivot_root", 155, .direct, "nn"),
  SyscallRow(42, "nfsservctl", -1, .planned, "xpp"),
  SyscallRow(43, "statfs", 137, .direct, "np"),
  SyscallRow(44, "fstatfs", 138, .direct, "dp"),
  SyscallRow(45, "truncate", 76, .emulated, "nd"),
  SyscallRow(46, "ftruncate", 77, .direct, "dd"),
  SyscallRow(47, "fallocate", 285, .direct, "dxdd"),
  SyscallRow(48, "faccessat", 269, .direct, "fno"),
  SyscallRow(49, "chdir", 80, .direct, "n"),
  SyscallRow(50, "fchdir", 81, .direct, "d"),
  SyscallRow(51, "chroot", 161, .direct, "n"),
  SyscallRow(52, "fchmod", 91, .direct, "do"),
  SyscallRow(53, "fchmodat", 268, .direct, "fno"),
  SyscallRow(54, "fchownat", 260, .direct, "fnddA"),
  SyscallRow(55, "fchown", 93, .direct, "ddd"),
  SyscallRow(56, "openat", 257, .emulated, "fnOo"),
  SyscallRow(57, "close", 3, .emulated, "d"),
  SyscallRow(58, "vhangup", 153, .direct, ""),
  SyscallRow(59, "pipe2", 293, .emulated, "pO"),
  SyscallRow(60, "quotactl", 179, .direct, "xnxp"),
  SyscallRow(61, "getdents64", 217, .direct, "dpx"),
  SyscallRow(62, "lseek", 8, .direct, "ddS"),
  SyscallRow(63, "read", 0, .blocking, "dpx"),
  SyscallRow(64, "write", 1, .blocking, "dqx"),
  SyscallRow(65, "readv", 19, .blocking, "dpx"),
  SyscallRow(66, "writev", 20, .blocking, "dpx"),
  SyscallRow(67, "pread64", 17, .blocking, "dpxx"),
  SyscallRow(68, "pwrite64", 18, .blocking, "dqxx"),
  SyscallRow(69, "preadv", 295, .blocking, "dpxxx"),
  SyscallRow(70, "pwritev", 296, .blocking, "dpxxx"),
  SyscallRow(71, "sendfile", 40, .blocking, "ddpx"),
  SyscallRow(72, "pselect6", 270, .waiting, "dppppp"),
  SyscallRow(73, "ppoll", 271, .waiting, "pxppx"),
  SyscallRow(74, "signalfd4", 289, .direct, "dpxx"),
  SyscallRow(75, "vmsplice", 278, .blocking, "dpxx"),
  SyscallRow(76, "splice", 275, .blocking, "dpdpxx"),
  SyscallRow(77, "tee", 276, .blocking, "ddxx"),
  SyscallRow(78, "readlinkat", 267, .emulated, "fnpx"),
  SyscallRow(79, "newfstatat", 262, .emulated, "fnpA"),
  SyscallRow(80, "fstat", 5, .emulated, "dp"),
  SyscallRow(81, "sync", 162, .direct, ""),
  SyscallRow(82, "fsync", 74, .direct, "d"),
  SyscallRow(83, "fdatasync", 75, .direct, "d"),
  SyscallRow(84, "sync_file_range", 277, .direct, "dxxx"),
  SyscallRow(85, "timerfd_create", 283, .direct, "xx"),
  SyscallRow(86, "timerfd_settime", 286, .direct, "dxpp"),
  SyscallRow(87, "timerfd_gettime", 287, .direct, "dp"),
  SyscallRow(88, "utimensat", 280, .direct, "fnpA"),
  SyscallRow(89, "acct", 163, .direct, "n"),
  // Processes and threads
  SyscallRow(90, "capget", 125, .direct, "pp"),
  SyscallRow(91, "capset", 126, .direct, "pp"),
  SyscallRow(92, "personality", 135, .direct, "x"),
  SyscallRow(93, "exit", 60, .emulated, "d"),
  SyscallRow(94, "exit_group", 231, .emulated, "d"),
  SyscallRow(95, "waitid", 247, .emulated, "ddpWp"),
  SyscallRow(96, "set_tid_address", 218, .emulated, "p"),
  SyscallRow(97, "unshare", 272, .direct, "x"),
  SyscallRow(98, "futex", 202, .blocking, "pxdppx"),
  SyscallRow(99, "set_robust_list", 273, .emulated, "px"),
  SyscallRow(100, "get_robust_list", 274, .direct, "dpp"),
  SyscallRow(101, "nanosleep", 35, .waiting, "pp"),
  SyscallRow(102, "getitimer", 36, .direct, "xp"),
  SyscallRow(103, "setitimer", 38, .direct, "xpp"),
  SyscallRow(104, "kexec_load", 246, .planned, "xxpx"),
  SyscallRow(105, "init_module", 175, .planned, "pxs"),
  SyscallRow(106, "delete_module", 176, .direct, "sx"),
  SyscallRow(107, "timer_create", 222, .direct, "xpp"),
  SyscallRow(108, "timer_gettime", 224, .direct, "xp"),
  SyscallRow(109, "timer_getoverrun", 225, .direct, "x"),
  SyscallRow(110, "timer_settime", 223, .direct, "xxpp"),
  SyscallRow(111, "timer_delete", 226, .direct, "x"),
  SyscallRow(112, "clock_settime", 227, .direct, "Kp"),
  SyscallRow(113, "clock_gettime", 228, .emulated, "Kp"),
  SyscallRow(114, "clock_getres", 229, .direct, "Kp"),
  SyscallRow(115, "clock_nanosleep", 230, .waiting, "Kxpp"),
  SyscallRow(116, "syslog", 103, .direct, "xpx"),
  SyscallRow(117, "ptrace", 101, .emulated, "xdpp"),
  SyscallRow(118, "sched_setparam", 142, .direct, "dp"),
  SyscallRow(119, "sched_setscheduler", 144, .direct, "dxp"),
  SyscallRow(120, "sched_getscheduler", 145, .direct, "d"),
  SyscallRow(121, "sched_getparam", 143, .direct, "dp"),
  SyscallRow(122, "sched_setaffinity", 203, .direct, "dxp"),
  SyscallRow(123, "sched_getaffinity", 204, .direct, "dxp"),
  SyscallRow(124, "sched_yield", 24, .direct, ""),
  SyscallRow(125, "sched_get_priority_max", 146, .direct, "x"),
  SyscallRow(126, "sched_get_priority_min", 147, .direct, "x"),
  SyscallRow(127, "sched_rr_get_interval", 148, .direct, "dp"),
  SyscallRow(128, "restart_syscall", 219, .planned, ""),
  // Signals
  SyscallRow(129, "kill", 62, .direct, "dg"),
  SyscallRow(130, "tkill", 200, .direct, "dg"),
  SyscallRow(131, "tgkill", 234, .direct, "ddg"),
  SyscallRow(132, "sigaltstack", 131, .emulated, "pp"),
  SyscallRow(133, "rt_sigsuspend", 130, .emulated, "px"),
  SyscallRow(134, "rt_sigaction", 13, .emulated, "gppx"),
  SyscallRow(135, "rt_sigprocmask", 14, .emulated, "Hppx"),
  SyscallRow(136, "rt_sigpending", 127, .emulated, "px"),
  SyscallRow(137, "rt_sigtimedwait", 128, .emulated, "pppx"),
  SyscallRow(138, "rt_sigqueueinfo", 129, .direct, "dgp"),
  SyscallRow(139, "rt_sigreturn", 15, .emulated, ""),
  // Identity and limits
  SyscallRow(140, "setpriority", 141, .direct, "xdd"),
  SyscallRow(141, "getpriority", 140, .direct, "xd"),
  SyscallRow(142, "reboot", 169, .direct, "xxxp"),
  SyscallRow(143, "setregid", 114, .direct, "dd"),
  SyscallRow(144, "setgid", 106, .direct, "d"),
  SyscallRow(145, "setreuid", 113, .direct, "dd"),
  SyscallRow(146, "setuid", 105, .direct, "d"),
  SyscallRow(147, "setresuid", 117, .direct, "ddd"),
  SyscallRow(148, "getresuid", 118, .direct, "ppp"),
  SyscallRow(149, "setresgid", 119, .direct, "ddd"),
  SyscallRow(150, "getresgid", 120, .direct, "ppp"),
  SyscallRow(151, "setfsuid", 122, .direct, "d"),
  SyscallRow(152, "setfsgid", 123, .direct, "d"),
  SyscallRow(153, "times", 100, .direct, "p"),
  SyscallRow(154, "setpgid", 109, .direct, "dd"),
  SyscallRow(155, "getpgid", 121, .direct, "d"),
  SyscallRow(156, "getsid", 124, .direct, "d"),
  SyscallRow(157, "setsid", 112, .direct, ""),
  SyscallRow(158, "getgroups", 115, .direct, "dp"),
  SyscallRow(159, "setgroups", 116, .direct, "dp"),
  SyscallRow(160, "uname", 63, .emulated, "p"),
  SyscallRow(161, "sethostname", 170, .direct, "sx"),
  SyscallRow(162, "setdomainname", 171, .direct, "sx"),
  SyscallRow(163, "getrlimit", 97, .emulated, "xp"),
  SyscallRow(164, "setrlimit", 160, .emulated, "xp"),
  SyscallRow(165, "getrusage", 98, .direct, "xp"),
  SyscallRow(166, "umask", 95, .direct, "o"),
  SyscallRow(167, "prctl", 157, .emulated, "dxxxx"),
  SyscallRow(168, "getcpu", 309, .direct, "ppp"),
  SyscallRow(169, "gettimeofday", 96, .emulated, "pp"),
  SyscallRow(170, "settimeofday", 164, .direct, "pp"),
  SyscallRow(171, "adjtimex", 159, .direct, "p"),
  SyscallRow(172, "getpid", 39, .direct, ""),
  SyscallRow(173, "getppid", 110, .direct, ""),
  SyscallRow(174, "getuid", 102, .direct, ""),
  SyscallRow(175, "geteuid", 107, .direct, ""),
  SyscallRow(176, "getgid", 104, .direct, ""),
  SyscallRow(177, "getegid", 108, .direct, ""),
  SyscallRow(178, "gettid", 186, .direct, ""),
  SyscallRow(179, "sysinfo", 99, .direct, "p"),
  // System V and POSIX interprocess communication
  SyscallRow(180, "mq_open", 240, .direct, "sxop"),
  SyscallRow(181, "mq_unlink", 241, .direct, "s"),
  SyscallRow(182, "mq_timedsend", 242, .blocking, "dpxxp"),
  SyscallRow(183, "mq_timedreceive", 243, .blocking, "dpxpp"),
  SyscallRow(184, "mq_notify", 244, .direct, "dp"),
  SyscallRow(185, "mq_getsetattr", 245, .direct, "dpp"),
  SyscallRow(186, "msgget", 68, .direct, "xx"),
  SyscallRow(187, "msgctl", 71, .direct, "xxp"),
  SyscallRow(188, "msgrcv", 70, .waiting, "xpxxx"),
  SyscallRow(189, "msgsnd", 69, .waiting, "xpxx"),
  SyscallRow(190, "semget", 64, .direct, "xxx"),
  SyscallRow(191, "semctl", 66, .emulated, "xxxp"),
  SyscallRow(192, "semtimedop", 220, .waiting, "xpxp"),
  SyscallRow(193, "semop", 65, .waiting, "xpx"),
  SyscallRow(194, "shmget", 29, .direct, "xxx"),
  SyscallRow(195, "shmctl", 31, .direct, "xxp"),
  SyscallRow(196, "shmat", 30, .emulated, "xpx"),
  SyscallRow(197, "shmdt", 67, .emulated, "p"),
  // Sockets
  SyscallRow(198, "socket", 41, .direct, "xxx"),
  SyscallRow(199, "socketpair", 53, .direct, "xxxp"),
  SyscallRow(200, "bind", 49, .direct, "dpx"),
  SyscallRow(201, "listen", 50, .direct, "dd"),
  SyscallRow(202, "accept", 43, .blocking, "dpp"),
  SyscallRow(203, "connect", 42, .blocking, "dpx"),
  SyscallRow(204, "getsockname", 51, .direct, "dpp"),
  SyscallRow(205, "getpeername", 52, .direct, "dpp"),
  SyscallRow(206, "sendto", 44, .blocking, "dqxxpx"),
  SyscallRow(207, "recvfrom", 45, .blocking, "dpxxpp"),
  SyscallRow(208, "setsockopt", 54, .direct, "dxxpx"),
  SyscallRow(209, "getsockopt", 55, .direct, "dxxpp"),
  SyscallRow(210, "shutdown", 48, .direct, "dx"),
  SyscallRow(211, "sendmsg", 46, .blocking, "dpx"),
  SyscallRow(212, "recvmsg", 47, .blocking, "dpx"),
  SyscallRow(242, "accept4", 288, .blocking, "dppx"),
  SyscallRow(243, "recvmmsg", 299, .blocking, "dpxxp"),
  SyscallRow(269, "sendmmsg", 307, .blocking, "dpxx"),
  // Memory
  SyscallRow(213, "readahead", 187, .direct, "dxx"),
  SyscallRow(214, "brk", 12, .emulated, "p"),
  SyscallRow(215, "munmap", 11, .emulated, "px"),
  SyscallRow(216, "mremap", 25, .emulated, "pxxxp"),
  SyscallRow(217, "add_key", 248, .direct, "sspxx"),
  SyscallRow(218, "request_key", 249, .direct, "sssx"),
  SyscallRow(219, "keyctl", 250, .direct, "xxxxx"),
  SyscallRow(220, "clone", 56, .emulated, "Cpppp"),
  SyscallRow(221, "execve", 59, .emulated, "npp"),
  SyscallRow(222, "mmap", 9, .emulated, "pxPMdx"),
  SyscallRow(223, "fadvise64", 221, .direct, "dxxx"),
  SyscallRow(224, "swapon", 167, .direct, "nx"),
  SyscallRow(225, "swapoff", 168, .direct, "n"),
  SyscallRow(226, "mprotect", 10, .emulated, "pxP"),
  SyscallRow(227, "msync", 26, .direct, "pxx"),
  SyscallRow(228, "mlock", 149, .direct, "px"),
  SyscallRow(229, "munlock", 150, .direct, "px"),
  SyscallRow(230, "mlockall", 151, .emulated, "x"),
  SyscallRow(231, "munlockall", 152, .direct, ""),
  SyscallRow(232, "mincore", 27, .direct, "pxp"),
  SyscallRow(233, "madvise", 28, .emulated, "pxx"),
  SyscallRow(234, "remap_file_pages", 216, .emulated, "pxxxx"),
  SyscallRow(235, "mbind", 237, .direct, "pxxpxx"),
  SyscallRow(236, "get_mempolicy", 239, .direct, "ppxpx"),
  SyscallRow(237, "set_mempolicy", 238, .direct, "xpx"),
  SyscallRow(238, "migrate_pages", 256, .direct, "dxpp"),
  SyscallRow(239, "move_pages", 279, .direct, "dxpppx"),
  SyscallRow(240, "rt_tgsigqueueinfo", 297, .direct, "ddgp"),
  SyscallRow(241, "perf_event_open", 298, .planned, "pddxx"),
  SyscallRow(260, "wait4", 61, .emulated, "dpWp"),
  SyscallRow(261, "prlimit64", 302, .emulated, "dxpp"),
  SyscallRow(262, "fanotify_init", 300, .direct, "xx"),
  SyscallRow(263, "fanotify_mark", 301, .direct, "dxxfn"),
  // Later additions
  SyscallRow(264, "name_to_handle_at", 303, .direct, "fnppx"),
  SyscallRow(265, "open_by_handle_at", 304, .emulated, "dpx"),
  SyscallRow(266, "clock_adjtime", 305, .direct, "xp"),
  SyscallRow(267, "syncfs", 306, .direct, "d"),
  SyscallRow(268, "setns", 308, .direct, "dx"),
  SyscallRow(270, "process_vm_readv", 310, .direct, "dpxpxx"),
  SyscallRow(271, "process_vm_writev", 311, .direct, "dpxpxx"),
  SyscallRow(272, "kcmp", 312, .direct, "ddxxx"),
  SyscallRow(273, "finit_module", 313, .planned, "dsx"),
  SyscallRow(274, "sched_setattr", 314, .direct, "dpx"),
  SyscallRow(275, "sched_getattr", 315, .direct, "dpxx"),
  SyscallRow(276, "renameat2", 316, .direct, "fnfnx"),
  SyscallRow(277, "seccomp", 317, .emulated, "xxp"),
  SyscallRow(278, "getrandom", 318, .direct, "pxx"),
  SyscallRow(279, "memfd_create", 319, .direct, "sx"),
  SyscallRow(280, "bpf", 321, .planned, "xpx"),
  SyscallRow(281, "execveat", 322, .emulated, "fnppA"),
  SyscallRow(282, "userfaultfd", 323, .direct, "x"),
  SyscallRow(283, "membarrier", 324, .direct, "xxx"),
  SyscallRow(284, "mlock2", 325, .direct, "pxx"),
  SyscallRow(285, "copy_file_range", 326, .direct, "dpdpxx"),
  SyscallRow(286, "preadv2", 327, .blocking, "dpxxxx"),
  SyscallRow(287, "pwritev2", 328, .blocking, "dpxxxx"),
  SyscallRow(288, "pkey_mprotect", 329, .planned, "pxxx"),
  SyscallRow(289, "pkey_alloc", 330, .planned, "xx"),
  SyscallRow(290, "pkey_free", 331, .planned, "x"),
  SyscallRow(291, "statx", 332, .direct, "fnAxp"),
  SyscallRow(292, "io_pgetevents", 333, .waiting, "xddppp"),
  SyscallRow(293, "rseq", 334, .planned, "pxxx"),
  SyscallRow(294, "kexec_file_load", 320, .planned, "ddxsx"),
  SyscallRow(424, "pidfd_send_signal", 424, .direct, "dgpx"),
  SyscallRow(425, "io_uring_setup", 425, .planned, "xp"),
  SyscallRow(426, "io_uring_enter", 426, .planned, "dxxxpx"),
  SyscallRow(427, "io_uring_register", 427, .planned, "dxpx"),
  SyscallRow(428, "open_tree", 428, .direct, "fnx"),
  SyscallRow(429, "move_mount", 429, .direct, "fnfnx"),
  SyscallRow(430, "fsopen", 430, .direct, "sx"),
  SyscallRow(431, "fsconfig", 431, .direct, "dxspx"),
  SyscallRow(432, "fsmount", 432, .direct, "dxx"),
  SyscallRow(433, "fspick", 433, .direct, "fnx"),
  SyscallRow(434, "pidfd_open", 434, .direct, "dx"),
  SyscallRow(435, "clone3", 435, .emulated, "px"),
  SyscallRow(436, "close_range", 436, .emulated, "xxx"),
  SyscallRow(437, "openat2", 437, .emulated, "fnpx"),
  SyscallRow(438, "pidfd_getfd", 438, .direct, "ddx"),
  SyscallRow(439, "faccessat2", 439, .direct, "fnoA"),
  SyscallRow(440, "process_madvise", 440, .direct, "dpxxx"),
  SyscallRow(441, "epoll_pwait2", 441, .emulated, "dpdppx"),
  SyscallRow(442, "mount_setattr", 442, .direct, "fnxpx"),
  SyscallRow(443, "quotactl_fd", 443, .direct, "dxxp"),
  SyscallRow(444, "landlock_create_ruleset", 444, .direct, "pxx"),
  SyscallRow(445, "landlock_add_rule", 445, .direct, "dxpx"),
  SyscallRow(446, "landlock_restrict_self", 446, .direct, "dx"),
  SyscallRow(447, "memfd_secret", 447, .direct, "x"),
  SyscallRow(448, "process_mrelease", 448, .direct, "dx"),
  SyscallRow(449, "futex_waitv", 449, .waiting, "pxxpx"),
  SyscallRow(450, "set_mempolicy_home_node", 450, .direct, "pxxx"),
  SyscallRow(451, "cachestat", 451, .direct, "dppx"),
  SyscallRow(452, "fchmodat2", 452, .direct, "fnox"),
  SyscallRow(453, "map_shadow_stack", 453, .planned, "pxx"),
  SyscallRow(454, "futex_wake", 454, .direct, "pxdx"),
  SyscallRow(455, "futex_wait", 455, .blocking, "pxxxpx"),
  SyscallRow(456, "futex_requeue", 456, .direct, "pxdd"),
  SyscallRow(457, "statmount", 457, .direct, "ppxx"),
  SyscallRow(458, "listmount", 458, .direct, "ppxx"),
  SyscallRow(459, "lsm_get_self_attr", 459, .direct, "xppx"),
  SyscallRow(460, "lsm_set_self_attr", 460, .direct, "xpxx"),
  SyscallRow(461, "lsm_list_modules", 461, .direct, "ppx"),
  SyscallRow(462, "mseal", 462, .emulated, "pxx"),
  SyscallRow(463, "setxattrat", 463, .direct, "fnxspx"),
  SyscallRow(464, "getxattrat", 464, .direct, "fnxspx"),
  SyscallRow(465, "listxattrat", 465, .direct, "fnxpx"),
  SyscallRow(466, "removexattrat", 466, .direct, "fnxs"),
  SyscallRow(467, "open_tree_attr", 467, .direct, "fnxpx"),
  SyscallRow(468, "file_getattr", 468, .direct, "fnpxA"),
  SyscallRow(469, "file_setattr", 469, .direct, "fnpxA"),
]

/// What only RISC-V has.
public let riscvSyscalls: [SyscallRow] = [
  SyscallRow(258, "riscv_hwprobe", -1, .emulated, "pxxpx"),
  SyscallRow(259, "riscv_flush_icache", -1, .emulated, "ppx"),
]

/// What a system call costs least to carry out.
public struct SyscallEntry: Sendable {
  public var host: Int16
  /// The generic ABI's number, which emulated calls are told apart by.
  public var number: UInt16
  public var kind: SyscallKind
  /// The arguments that are names of files, a bit each.
  public var names: UInt8
  /// Into `SyscallTable.rows`; -1 for numbers that mean nothing.
  var row: Int16
}

/// The calls of an ISA by its numbers. Lives as long as the process.
public struct SyscallTable: @unchecked Sendable {
  // SAFETY: `count` entries, written in init only and never freed.
  public let entries: UnsafePointer<SyscallEntry>
  public let count: Int
  public let rows: [SyscallRow]

  /// The generic ABI's numbers, and an architecture's own calls.
  public static func generic(_ own: [SyscallRow]) -> SyscallTable {
    let rows = genericSyscalls + own
    return SyscallTable(rows, numbers: rows.map(\.number))
  }
  /// - Parameter numbers: the ISA's number of each row.
  public init(_ rows: [SyscallRow], numbers: [Int]) {
    count = (numbers.max() ?? 0) + 1
    let entries = UnsafeMutablePointer<SyscallEntry>.allocate(capacity: count)
    entries.initialize(
      repeating: SyscallEntry(host: -1, number: .max, kind: .planned, names: 0, row: -1), count: count)
    for (index, row) in rows.enumerated() {
      entries[numbers[index]] = SyscallEntry(
        host: Int16(row.host), number: UInt16(row.number), kind: row.kind, names: row.names,
        row: Int16(index))
    }
    self.entries = UnsafePointer(entries)
    self.rows = rows
  }

  /// The row of the ISA's number; `nil` where there is none.
  public func row(_ number: UInt64) -> SyscallRow? {
    guard number < UInt64(count), entries[Int(number)].row >= 0 else { return nil }
    return rows[Int(entries[Int(number)].row)]
  }
}
