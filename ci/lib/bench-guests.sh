#!/usr/bin/env bash
# ci/bench guests: ten `tiny` guests at once in 3 GiB, below QEMU's interpreter: each hypervisor of the recipe's menu, and libvirt on the
# same first system under KVM. What one more takes to be up, and what memory it holds.
set -euo pipefail
cd "$(dirname "$0")/../.."
ci/lib/install.sh
kept=${BENCH_DIR:+yes}
mkdir -p "${BENCH_DIR:=$(mktemp -d)}"
dir=$(realpath "$BENCH_DIR")
[ "$kept" = yes ] || trap 'rm -rf "$dir"' EXIT
built() { cargo build --release "$@" --message-format json-render-diagnostics | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1; }
gasthaus=$(built --workspace --bin gasthaus)
helper=$(built -p boot-tests --bin bench-helper)

names=() files=()
for number in 1 2 3 4 5 6 7 8 9 10; do
  names+=("tiny$number") files+=("\"./tiny$number.toml\"")
  # A port of dom0 can lead to one guest only.
  sed -e "s/^name = .*/name = \"tiny$number\"/" -e 's/^memory-mib = .*/memory-mib = 96/' -e '/^forwards/d' -e "s/^order = .*/order = $number/" \
    -e 's/^timeout-secs = .*/timeout-secs = 600/' guest-catalog/guests/tiny/guest.toml >"$dir/tiny$number.toml"
done
list() { local IFS=,; echo "$*"; }
sed -e '0,/^name = /s/^name = .*/name = "ten"/' -e "s|^guests = .*|guests = [$(list "${files[@]}")]|" builder/recipes/demo.toml >"$dir/ten.toml"
cp gasthaus.lock "$dir/gasthaus.lock" # the same packages, and some more
# Libvirt finds no policies there, and no users of its own.
mkdir -p "$dir/libvirt/root/etc/libvirt"
printf 'security_driver = "none"\nuser = "root"\ngroup = "root"\n' >"$dir/libvirt/root/etc/libvirt/qemu.conf"
printf 'target = "dom0"\ndescription = "Settings of libvirt"\n' >"$dir/libvirt/overlay.toml"
libvirt='"libvirt-daemon-system", "libvirt-daemon-driver-qemu", "libvirt-clients", "virtinst", "qemu-system-x86"'
sed -i -e "s/^packages = .*/packages = [$libvirt]/" -e 's|^overlays = .*|overlays = ["./libvirt"]|' "$dir/ten.toml"
"$gasthaus" build "$dir/ten.toml" --out "$dir/out" >&2

rows=$dir/guests.tsv
rm -f "$rows"
xorriso -report_about FAILURE -osirrox on -indev "$dir/out/ten.iso" -extract /boot/grub/grub.cfg "$dir/menu.cfg"
for hypervisor in $(sed -n 's/^flavours = \[\(.*\)\]/\1/p' "$dir/ten.toml" | tr -d '",'); do
  [ "$hypervisor" != plain ] || continue
  # Its entry at once: the menu is written over in place, without its comments, so that there is room.
  sed -e '/^ *#/d' -e "s/^set default=.*/set default=$hypervisor/" -e 's/^set timeout=.*/set timeout=0/' "$dir/menu.cfg" >"$dir/$hypervisor.cfg"
  cp "$dir/out/ten.iso" "$dir/$hypervisor.iso"
  "$helper" overwrite "$dir/$hypervisor.iso" /boot/grub/grub.cfg "$dir/$hypervisor.cfg"
  for _ in $(seq "${RUNS:-1}"); do
    "$helper" guests "$rows" "$hypervisor" "$dir/$hypervisor.iso" "$hypervisor" "$(list "${names[@]}")"
  done
done
"$helper" table "$rows" "$(head -1 "$rows" | cut -f1)"
