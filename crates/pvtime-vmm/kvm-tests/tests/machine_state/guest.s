// A guest that shows everything that it does: each value that matters is stored to x19, where no
// memory is, and so leaves the guest. It runs without an MMU.
//
// vCPU 0 computes with general, floating-point and vector registers and memory, reads from a device,
// takes two SGIs and two SPIs that were pending together, and starts vCPU 1, which takes an SGI that
// was pending before it started.

.section .rodata.guest, "a"
.balign 4096
.global guest_start
guest_start:
    bl      common
    mov     x20, #0x08000000            // distributor
    mov     x21, #0x0c000000
    add     x21, x21, #0x10000          // vCPU 0's private interrupts

    mov     w0, #0x12                   // GICD_CTLR: group 1, affinity routing
    str     w0, [x20]
    mov     w0, #2                      // GICD_ICFGR2: 32 is an edge, 33 a level
    str     w0, [x20, #0xc08]
    mov     w0, #0xa080                 // GICD_IPRIORITYR8
    str     w0, [x20, #0x420]
    mov     w0, #3                      // GICD_ISENABLER1: 32 and 33
    str     w0, [x20, #0x104]
    mov     w0, #0x4000                 // GICR_IPRIORITYR0: SGI 1 at 0x40, 2 at 0xc0
    movk    w0, #0xc0, lsl #16
    str     w0, [x21, #0x400]
    mov     w0, #0x20                   // GICR_ICENABLER0: SGI 5
    str     w0, [x21, #0x180]

    // Registers and memory.
    mov     x23, #0x8000                // a page of data
    movk    x23, #0x4000, lsl #16
    movz    x26, #0x7f2d                // a multiplier and an increment
    movk    x26, #0x4c95, lsl #16
    movk    x26, #0xf42d, lsl #32
    movk    x26, #0x5851, lsl #48
    mov     x27, #0x1405
    mov     x22, #1
    mov     x0, #0x00c00000             // FPCR: round towards zero
    msr     fpcr, x0
    fmov    d0, #1.0
    fmov    d1, #1.0625
    fmov    d2, #0.1328125
    movi    v29.2d, #0
    movi    v31.2d, #0
    mov     x24, #4
1:  mov     x25, #100
2:  madd    x22, x22, x26, x27
    and     x0, x22, #0xff8
    add     x1, x23, x0
    str     x22, [x1]
    dc      civac, x1                   // for a host that has it in its cache
    fmadd   d0, d0, d1, d2
    ins     v30.d[0], x22
    ins     v30.d[1], x25
    eor     v31.16b, v31.16b, v30.16b
    add     v29.2d, v29.2d, v31.2d
    subs    x25, x25, #1
    b.ne    2b
    str     x22, [x19]
    subs    x24, x24, #1
    b.ne    1b

    ldr     x0, [x19, #8]               // the device
    eor     x22, x22, x0

    // Interrupts, pending before they are let in.
    movz    x0, #0x0100, lsl #16        // SGI 1 to this vCPU
    movk    x0, #1
    msr     S3_0_C12_C11_5, x0
    movz    x0, #0x0200, lsl #16        // SGI 2
    movk    x0, #1
    msr     S3_0_C12_C11_5, x0
    isb
    mov     x28, #0
    mov     x0, #0x11                   // here the SPIs become pending
    str     x0, [x19]
    msr     daifclr, #2
    mov     x2, #0x100000
1:  cmp     x28, #4
    b.eq    2f
    subs    x2, x2, #1
    b.ne    1b
2:  msr     daifset, #2
    str     x28, [x19]

    // The other vCPU.
    movz    x0, #0xc400, lsl #16        // PSCI CPU_ON
    movk    x0, #3
    mov     x1, #1
    adr     x2, other
    mov     x3, #0xc0de
    hvc     #0
    str     x0, [x19]
    movz    x0, #0x0300, lsl #16        // SGI 3 to vCPU 1
    movk    x0, #2
    msr     S3_0_C12_C11_5, x0
    isb

    // What is left of it all.
    ldr     w0, [x21, #0x100]           // GICR_ISENABLER0
    str     x0, [x19]
    mov     x24, #512
    mov     x25, x23
1:  ldr     x0, [x25], #8
    madd    x22, x22, x26, x0
    subs    x24, x24, #1
    b.ne    1b
    str     x22, [x19]
    fmov    x0, d0
    str     x0, [x19]
    umov    x0, v29.d[0]
    str     x0, [x19]
    umov    x0, v29.d[1]
    str     x0, [x19]
    mrs     x0, fpcr
    str     x0, [x19]
    mrs     x0, fpsr
    str     x0, [x19]
    mrs     x0, tpidr_el0
    str     x0, [x19]
end:
    mov     x0, #0xe0d
    str     x0, [x19]
    b       end

other:
    mov     x18, x0                     // what vCPU 0 gave it
    bl      common
    str     x18, [x19]
    mov     x28, #0
    msr     daifclr, #2
    mov     x2, #0x100000
1:  cbnz    x28, end
    subs    x2, x2, #1
    b.ne    1b
    b       end

common:
    mov     x19, #0x01000000
    mov     x0, #0x00300000             // CPACR_EL1: floating point
    msr     cpacr_el1, x0
    adr     x0, vectors
    msr     vbar_el1, x0
    mov     x0, #0x7157
    msr     tpidr_el0, x0
    mov     x0, #7                      // ICC_SRE_EL1
    msr     S3_0_C12_C12_5, x0
    isb
    mov     x0, #0xf0                   // ICC_PMR_EL1
    msr     S3_0_C4_C6_0, x0
    mov     x0, #1                      // ICC_IGRPEN1_EL1
    msr     S3_0_C12_C12_7, x0
    isb
    ret

fault:
    mrs     x0, esr_el1
    orr     x0, x0, #1 << 63
    str     x0, [x19]
    b       end

irq:
    mrs     x0, S3_0_C12_C12_0          // ICC_IAR1_EL1
    dsb     sy
    str     x0, [x19]
    mrs     x1, S3_0_C12_C11_3          // ICC_RPR_EL1
    orr     x1, x1, #0x10000
    str     x1, [x19]
    add     x28, x28, #1
    msr     S3_0_C12_C12_1, x0          // ICC_EOIR1_EL1
    isb
    eret

.balign 2048
vectors:
.rept 5
    b       fault
    .balign 128
.endr
    b       irq
    .balign 128
.rept 10
    b       fault
    .balign 128
.endr
.global guest_end
guest_end:
