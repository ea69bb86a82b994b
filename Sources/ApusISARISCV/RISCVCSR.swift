/// Control and status registers by number [RV-Priv 2.2].
public enum RISCVCSR: UInt16, CaseIterable, Sendable {
  case fflags = 0x001
  case frm, fcsr
  case cycle = 0xc00
  case time, instret
  case sstatus = 0x100
  case sie = 0x104
  case stvec, scounteren
  case senvcfg = 0x10a
  case sscratch = 0x140
  case sepc, scause, stval, sip
  case stimecmp = 0x14d
  case satp = 0x180
  case mvendorid = 0xf11
  case marchid, mimpid, mhartid, mconfigptr
  case mstatus = 0x300
  case misa, medeleg, mideleg, mie, mtvec, mcounteren
  case menvcfg = 0x30a
  case mcountinhibit = 0x320
  case mscratch = 0x340
  case mepc, mcause, mtval, mip
  case mseccfg = 0x747
  case tselect = 0x7a0
  case tdata1, tdata2, tdata3
  case mcycle = 0xb00
  case minstret = 0xb02
}
