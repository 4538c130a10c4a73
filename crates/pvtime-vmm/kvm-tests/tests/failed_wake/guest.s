// An arm64 Image that suspends itself (PSCI SYSTEM_SUSPEND). Where it wakes it writes its context, as it
// finds it in x0, to the second serial port; where it is denied, the answer as a letter from 'A' down. Then
// it turns itself off.

    .section .rodata.sleeping_guest, "a"
    .balign 4
    .global sleeping_guest, sleeping_guest_end
sleeping_guest:
    b 1f
    .word 0
    .quad 0                                     // text_offset
    .quad sleeping_guest_end - sleeping_guest                 // image_size
    .quad 0, 0, 0, 0
    .ascii "ARM\x64"
    .word 0

1:  movz x0, #0x000e                            // PSCI SYSTEM_SUSPEND
    movk x0, #0xc400, lsl #16
    adr x1, woken
    mov x2, #'w'
    hvc #0
    add x0, x0, #'A'
woken:
    movz x10, #0x0901, lsl #16
    strb w0, [x10]
    mov w0, #0x0008                             // PSCI SYSTEM_OFF
    movk w0, #0x8400, lsl #16
    hvc #0
    b .
sleeping_guest_end:
