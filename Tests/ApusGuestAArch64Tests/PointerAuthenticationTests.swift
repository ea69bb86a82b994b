import ApusGuestAArch64
import Testing

struct PointerAuthenticationTests {
  /// QARMA-64 with five rounds and sigma 2: the cipher's published example [QARMA, table 11].
  @Test func qarma() {
    let code = QARMA.code(
      0xfb62_3599_da6e_8127, 0x477d_469d_ec0b_8762,
      key: (low: 0xec28_02d4_e0a4_88e9, high: 0x84be_85ce_9804_e94b))
    #expect(code == 0xc003_b939_99b3_3765)
  }

  @Test func modelsAndTheirProperties() throws {
    for model in AArch64Model.all {
      #expect(AArch64Model.named(model.name)?.mainID == model.mainID)
      #expect(AArch64Model.named(model.name + ",pauth=on") == nil || model.name == "max")
    }
    let off = try #require(AArch64Model.named("max,pauth=off"))
    #expect(!off.features.contains(.pauth) && off.features.contains(.aes))
    let qarma = try #require(AArch64Model.named("max,pauth-impdef=off"))
    #expect(qarma.authentication == .qarma5 && qarma.features.contains(.pauth))
    #expect(AArch64Model.named("max,pauth=maybe") == nil)
    #expect(AArch64Model.named("cortex-a77") == nil)
  }
}
