#!/bin/sh
# Boots gasthaus-live in QEMU from every kind of medium it must find, and from media it must refuse.
#
# usage: tests/boot.sh GASTHAUS-LIVE VMLINUZ MODULES-FOLDER [CASE…]
#   MODULES-FOLDER is /lib/modules/<version> with depmod's text files (modules.dep, .alias, .softdep, .builtin).
# Needs: qemu-system-x86_64 mkfs.erofs xorriso mke2fs mkfs.vfat mtools cpio zstd gcc, and root (device nodes).
# BOOT_SECS (240) limits each boot. Prints one line per case; exit code 1 if any failed. TCG, about 25 s per case on an idle machine.
set -eu
live=$(realpath "$1"); kernel=$(realpath "$2"); modules=$(realpath "$3"); shift 3
here=$(realpath "$(dirname "$0")/..")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
cd "$work"
id=0123456789abcdef

cat > init.c <<'C'
#include <fcntl.h>
#include <stdio.h>
#include <sys/reboot.h>
#include <unistd.h>
static void show(const char *path) {
  char text[4096]; int file = open(path, O_RDONLY); long n = file < 0 ? 0 : read(file, text, sizeof text - 1);
  text[n > 0 ? n : 0] = 0; printf("%s: %s\n", path, text);
}
int main(void) {
  int console = open("/dev/console", O_RDWR); dup2(console, 1);
  show("/run/gasthaus/boot.json"); show("/etc/layer");
  printf("REACHED writable=%d boot=%d\n", open("/new", O_CREAT | O_RDWR, 0600) >= 0, access("/boot/vmlinuz", R_OK) == 0);
  fflush(stdout); reboot(RB_POWER_OFF); return 0;
}
C
gcc -Os -static -o init init.c
mkdir -p base/sbin base/etc base/boot base/dev base/proc base/sys base/run site/etc iso/boot iso/gasthaus/$id
cp init base/sbin/init; echo base > base/etc/layer; echo site > site/etc/layer; echo kernel > iso/boot/vmlinuz
for layer in base site; do mkfs.erofs -zlz4 iso/gasthaus/$id/$layer.erofs $layer > mkfs.log 2>&1; done
printf 'base.erofs\nsite.erofs\n' > iso/gasthaus/$id/layers; echo $id > iso/gasthaus/build-id
pack() { xorriso -as mkisofs -R -V "$1" -o "$2" "$3" 2> xorriso.log; }
pack GASTHAUS_01234567 good.iso iso
cp -r iso bad; truncate -s 4096 bad/gasthaus/$id/base.erofs; pack GASTHAUS_01234567 cut.iso bad
dd if=/dev/zero of=bad/gasthaus/$id/base.erofs bs=8192 count=1 status=none; pack GASTHAUS_01234567 zero.iso bad
mkdir -p disk/isos; cp good.iso disk/isos/demo.iso; mke2fs -q -t ext4 -d disk ext4.img 64M
mke2fs -q -t ext4 -d base guest.img 16M
truncate -s 64M fat.img; mkfs.vfat -F32 fat.img > mkfs.log; mmd -i fat.img ::/isos; mcopy -i fat.img good.iso ::/isos/Demo.iso
truncate -s 64M esp.img; mkfs.vfat esp.img > mkfs.log
xorriso -as mkisofs -R -V GASTHAUS_01234567 -partition_offset 16 -appended_part_as_gpt -append_partition 2 0xef esp.img -o hybrid.iso iso 2> xorriso.log

# initrd OUT LIST ALWAYS: gasthaus-live with the modules the list means.
initrd() {
  tree=tree-$2; to=$tree/lib/modules/$(basename "$modules"); mkdir -p "$to" "$tree/dev" "$tree/etc/gasthaus"
  cp "$live" "$tree/init"; printf "$3" > "$tree/etc/gasthaus/modules"
  mknod "$tree/dev/console" c 5 1; mknod "$tree/dev/null" c 1 3
  (cd "$here" && cargo run -q --release -p fuse-rootfs --example choose-modules -- "$modules" "$2") > "$2.list"
  (cd "$modules" && cpio -pdm --quiet "$work/$to") < "$2.list"
  cp "$modules"/modules.alias "$modules"/modules.softdep "$modules"/modules.builtin "$modules"/modules.dep "$to"
  (cd "$tree" && find . | LC_ALL=C sort | cpio -o -H newc --quiet) | zstd -q -9 -f -o "$1"
}
initrd full.zst full 'erofs\noverlay\nisofs\n'
initrd guest.zst guest 'ext4\n'

failed=0
# boot NAME WANTED-TEXT INITRD APPEND QEMU-ARGUMENTS…: the text must appear on the serial console.
boot() {
  name=$1; want=$2; initrd=$3; append=$4; shift 4
  case " $cases " in *" $name "* | "  ") ;; *) return 0 ;; esac
  timeout "${BOOT_SECS:-240}" qemu-system-x86_64 -accel tcg,thread=multi -machine q35 -cpu max,-rdtscp -smp 2 -m 1024 -nic none -display none -no-reboot \
    -kernel "$kernel" -initrd "$initrd" -append "console=ttyS0 $append" -serial "file:$name.log" "$@" < /dev/null 2> "$name.err" &
  qemu=$!
  until grep -aqE "REACHED|keys: r try again" "$name.log" 2> /dev/null || ! kill -0 $qemu 2> /dev/null; do sleep 0.2; done
  kill $qemu 2> /dev/null || true; wait $qemu 2> /dev/null || true
  if tr '\r\n' '  ' < "$name.log" | grep -aq -- "$want"; then
    echo "ok     $name  $(grep -ao 'starting .* at [0-9]* ms' "$name.log" || true)"
  else
    failed=1; echo "FAILED $name: no \`$want\`"; tail -n 30 "$name.log"; cat "$name.err"
  fi
}
cases="$*"
raw() { echo "-drive file=$1,if=none,id=d,format=raw,readonly=on"; }
b=gasthaus.build=$id
stacked='site.*REACHED writable=1 boot=1'
usb="-device qemu-xhci -device usb-storage,drive=d"
virtio="-device virtio-blk-pci,drive=d"
# shellcheck disable=SC2046,SC2086 # the arguments are meant to be split
{
boot cd "/dev/sr0.*$stacked" full.zst "$b" -cdrom good.iso
boot usb "/dev/sda1.*$stacked" full.zst "$b" $(raw hybrid.iso) $usb
boot virtio "/dev/vda\".*$stacked" full.zst "$b" $(raw good.iso) $virtio
boot nvme "/dev/nvme0n1p1.*$stacked" full.zst "$b" $(raw hybrid.iso) -device nvme,drive=d,serial=x
boot toram "\"toram\":true.*$stacked" full.zst "$b gasthaus.toram" -snapshot -drive file=good.iso,if=none,id=d,format=raw -device ide-hd,drive=d
boot ext4-hint "/isos/demo.iso.*$stacked" full.zst "$b findiso=/isos/demo.iso" $(raw ext4.img) $virtio
boot ext4 "/isos/demo.iso.*$stacked" full.zst "$b" $(raw ext4.img) $virtio
boot fat "/isos/Demo.iso.*$stacked" full.zst "$b" $(raw fat.img) $usb
boot guest "base.*REACHED writable=1" guest.zst "gasthaus.root=/dev/vda" -snapshot -drive file=guest.img,if=none,id=d,format=raw $virtio
boot missing "ext4.*no folder .*GASTHAUS_11111111" full.zst "gasthaus.build=1111111111111111 gasthaus.wait-secs=5" $(raw ext4.img) $virtio
boot cut "/base.erofs. *is *cut *short" full.zst "$b" $(raw cut.iso) $virtio
boot zero "/base.erofs. *is *not *an *EROFS" full.zst "$b" $(raw zero.iso) $virtio
}
exit $failed
