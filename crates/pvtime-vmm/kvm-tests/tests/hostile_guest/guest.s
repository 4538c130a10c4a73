// An arm64 Image that writes with every kind of store into each time block that it can only read,
// and where nothing is. It counts the aborts that it takes, looks whether a block has changed, says so
// on the second serial port, and turns itself off.

    .section .rodata.hostile_guest, "a"
    .balign 4
    .global hostile_guest, hostile_guest_end
hostile_guest:
    b 1f
    .word 0
    .quad 0                                     // text_offset
    .quad hostile_guest_end - hostile_guest     // image_size
    .quad 0, 0, 0, 0
    .ascii "ARM\x64"
    .word 0

1:  adr x1, vectors
    msr vbar_el1, x1
    isb
    mov x28, #0                                 // aborts
    mov x21, #-1
    movz x20, #0x0a01, lsl #16                  // live physical time
    bl attack
    movz x20, #0x0a02, lsl #16                  // paused time
    bl attack
    movz x20, #0x0a03, lsl #16                  // nothing
    bl attack
    mov w0, #'k'
    bl put
    add w0, w28, #'a'                           // aborts, as a letter
    bl put
    mov w0, #'\n'
    bl put
off:
    mov w0, #0x0008                             // PSCI SYSTEM_OFF
    movk w0, #0x8400, lsl #16
    hvc #0
    b off

// Writes into the 64 bytes at x20 and compares them with what they were.
attack:
    mov x29, x30
    ldr x2, [x20]
    ldr x3, [x20, #8]
    ldr x4, [x20, #16]
    ldr x5, [x20, #56]
    str x21, [x20]
    str w21, [x20, #8]
    strh w21, [x20, #16]
    strb w21, [x20, #56]
    stp x21, x21, [x20]
    stp w21, w21, [x20, #16]
    mov x6, x20
    str x21, [x6], #8
    mov x6, x20
    str x21, [x6, #8]!
    stlr x21, [x20]
    ldr x6, [x20]
    ldr x7, [x20, #8]
    ldr x8, [x20, #16]
    ldr x9, [x20, #56]
    cmp x2, x6
    ccmp x3, x7, #0, eq
    ccmp x4, x8, #0, eq
    ccmp x5, x9, #0, eq
    mov w0, #'.'
    b.eq put_and_return
    mov w0, #'!'
put_and_return:
    bl put
    ret x29

put:
    movz x10, #0x0901, lsl #16
    strb w0, [x10]
    ret

aborted:
    mrs x11, esr_el1
    lsr x11, x11, #26
    cmp x11, #0x25                              // data abort
    b.ne other
    add x28, x28, #1
    mrs x11, elr_el1
    add x11, x11, #4
    msr elr_el1, x11
    eret
other:
    mov w0, #'?'
    bl put
    b off

    .balign 2048
vectors:
    .rept 16
    .balign 128
    b aborted
    .endr
hostile_guest_end:
