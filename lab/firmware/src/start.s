// Runs wherever it is put. There is no stack, and nothing that would need one.

    // PSCI 1.1, DEN0022. QEMU answers it to any exception level.
    .equ    CPU_OFF, 0x84000002
    .equ    CPU_ON, 0xc4000003
    // SCR_EL3: EL2 is in AArch64, without which CPU_ON refuses; EL2 may access CNTPOFF_EL2.
    .equ    SCR_RW, 1 << 10
    .equ    SCR_ECVEN_BIT, 28
    // A synchronous exception from a lower level in AArch64, from VBAR_EL3, which is 0 after a reset.
    .equ    VECTOR, 0x400
    // Intel's commands, for each of two flash chips side by side.
    .equ    PROGRAM_WORD, 0x00400040
    .equ    READ_ARRAY, 0x00ff00ff
    // Where QEMU has the few instructions that enter the kernel: the start of RAM.
    .equ    KERNEL, 0x40000000

    .macro  load register, value
    movz    \register, #((\value) & 0xffff)
    movk    \register, #((\value) >> 16), lsl #16
    .endm

// The first CPU, at EL3, after its reset.
    .section .start, "ax"
    .global start
start:
    adr     x0, trapped
    adr     x1, trapped_end
    mov     x2, #VECTOR
    load    w3, PROGRAM_WORD
1:  ldr     w4, [x0], #4
    str     w3, [x2]
    str     w4, [x2], #4
    cmp     x0, x1
    b.lo    1b
    load    w3, READ_ARRAY
    mov     x2, #0
    str     w3, [x2]
    dsb     sy

    mov     x0, #SCR_RW
    msr     scr_el3, x0
    isb
    load    w0, CPU_ON
    mov     x1, #1
    adr     x2, second
    mov     x3, #0
    smc     #0
off:
    load    w0, CPU_OFF
    smc     #0
    b       .

// The second CPU, at EL2. The first may not be off yet.
second:
    load    w0, CPU_ON
    mov     x1, #0
    load    w2, KERNEL
    mov     x3, #0
    smc     #0
    cbnz    w0, second
    b       off

// Any CPU, at EL3, in the midst of something: every register stays as it is. What traps although the
// bit is set is not for this, and would come again for ever: it stops here, where a debugger finds it.
trapped:
    msr     tpidr_el3, x0
    mrs     x0, scr_el3
    tbnz    x0, #SCR_ECVEN_BIT, 1f
    orr     x0, x0, #(1 << SCR_ECVEN_BIT)
    msr     scr_el3, x0
    isb
    mrs     x0, tpidr_el3
    eret
1:  b       .
trapped_end:
