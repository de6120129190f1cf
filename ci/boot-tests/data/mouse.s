# A boot sector that shows where its mouse is: it moves a white block over a text screen as a PS/2 mouse tells ways. Made by
#   as --32 -o mouse.o mouse.s && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o mouse.bin mouse.o
# `tests/boot/pointer.rs` has its bytes without what fills the sector.
.code16
.global _start
_start:
    cli
    xor %ax,%ax
    mov %ax,%ds
    mov %ax,%ss
    mov $0x7c00,%sp
    mov $3,%ax
    int $0x10
    mov $0x2000,%cx
    mov $1,%ah
    int $0x10           # no cursor
    cli
    mov $0xb800,%ax
    mov %ax,%es
    xor %di,%di
    mov $msg,%si
    mov $0x07,%ah
1:  lodsb
    test %al,%al
    jz 2f
    stosw
    jmp 1b
2:  mov $0xa8,%al       # the mouse's port on
    call cmd
    mov $0x20,%al
    call cmd
    call get
    and $0xcc,%al       # no interrupts, both clocks
    mov %al,%bl
    mov $0x60,%al
    call cmd
    mov %bl,%al
    call put
    mov $0xd4,%al       # to the mouse: tell
    call cmd
    mov $0xf4,%al
    call put
    call get            # its acknowledgement
    xor %bp,%bp         # where the block is
    xor %cx,%cx         # x
    xor %dx,%dx
    mov %dx,ypos
main:
    call get
    test $8,%al         # first byte of a packet
    jz main
    mov %al,%bl
    call get
    xor %ah,%ah
    test $0x10,%bl
    jz 1f
    dec %ah
1:  add %ax,%cx
    jns 1f
    xor %cx,%cx
1:  cmp $719,%cx
    jbe 1f
    mov $719,%cx
1:  call get
    xor %ah,%ah
    test $0x20,%bl
    jz 1f
    dec %ah
1:  mov ypos,%si
    sub %ax,%si
    jns 1f
    xor %si,%si
1:  cmp $399,%si
    jbe 1f
    mov $399,%si
1:  mov %si,ypos
    # old one away, except at first
    test %bp,%bp
    jz 1f
    movw $0x0720,%es:(%bp)
1:  mov %si,%ax
    shr $4,%ax
    mov $160,%di
    mul %di
    mov %ax,%bp
    mov %cx,%ax
    xor %dx,%dx
    mov $9,%di
    div %di
    add %ax,%ax
    add %ax,%bp
    movw $0x0fdb,%es:(%bp)
    jmp main
get:
    in $0x64,%al
    test $1,%al
    jz get
    in $0x60,%al
    ret
cmd:
    push %ax
1:  in $0x64,%al
    test $2,%al
    jnz 1b
    pop %ax
    out %al,$0x64
    ret
put:
    push %ax
1:  in $0x64,%al
    test $2,%al
    jnz 1b
    pop %ax
    out %al,$0x60
    ret
msg: .asciz "mouse>"
ypos: .word 0
.org 510
.word 0xaa55
