#!/usr/bin/env bash
# stock.sh FOLDER: the live ISO a user would write today, of the packages listed in FOLDER/dom0.packages and, when it is
# there, a guest's disk of FOLDER/guest.packages: mmdebstrap, live-boot, mksquashfs -comp zstd, grub-mkrescue.
# In: FOLDER/aptcache, debs and package lists from an earlier run, so that no network is measured (made if missing).
# Out: FOLDER/stock.iso. As root. Measured by ci/bench.
set -euo pipefail
cd "$1"
PATH=$PATH:/usr/sbin:/sbin

. /etc/os-release
suite=trixie
of_apt() { # the host's mirror of its own release's suite $1
  apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' | awk -v want="$1" '$1 == "Debian" && $2 == want { print $3; exit }'
}
mirror=${GASTHAUS_MIRROR:-$(of_apt "$VERSION_CODENAME")}
security=${GASTHAUS_SECURITY_MIRROR:-$(of_apt "$VERSION_CODENAME-security")}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
sources="deb [signed-by=$keyring] $mirror $suite main non-free-firmware"
# The same packages as ours, so the same archives: the newest kernel often lies in the security archive.
security_sources=${security:+deb [signed-by=$keyring] $security $suite-security main non-free-firmware}

tree() { # tree OUT PACKAGES-FILE CACHE EXTRA…
  local out=$1 list=$2 cache=$3
  shift 3
  mkdir -p "$cache/archives" "$cache/lists"
  local update=()
  [ -z "$(ls "$cache/lists")" ] || update=(--skip=update)
  mmdebstrap --quiet --mode=root --variant=essential "${update[@]}" \
    --include="$(paste -sd, "$list")${*:+,$(IFS=,; echo "$*")}" \
    --aptopt='Apt::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --skip=essential/unlink,cleanup/apt \
    --setup-hook='mkdir -p "$1/var/cache/apt/archives" "$1/var/lib/apt/lists"' \
    --setup-hook="cp -al $PWD/$cache/archives/. \"\$1/var/cache/apt/archives/\"" \
    --setup-hook="cp -a $PWD/$cache/lists/. \"\$1/var/lib/apt/lists/\"" \
    --customize-hook="cp -an \"\$1\"/var/cache/apt/archives/*.deb $PWD/$cache/archives/ || true" \
    --customize-hook="cp -an \"\$1\"/var/lib/apt/lists/*_* $PWD/$cache/lists/ || true" \
    --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*' \
    "$suite" "$out" "$sources" ${security_sources:+"$security_sources"}
}

rm -rf tree guest disk.img medium stock.iso
tree tree dom0.packages aptcache live-boot initramfs-tools zstd
echo stock >tree/etc/hostname
cat >tree/etc/systemd/system/stock-ready.service <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo "stock: ready after $(cut -d" " -f1 /proc/uptime) s" >/dev/console'
[Install]
WantedBy=multi-user.target
UNIT
ln -s ../stock-ready.service tree/etc/systemd/system/multi-user.target.wants/
mkdir -p medium/live medium/boot/grub
cp -L tree/boot/vmlinuz-* medium/boot/vmlinuz
cp -L tree/boot/initrd.img-* medium/boot/initrd
cp tree/boot/xen-*-amd64.gz medium/boot/xen.gz
if [ -e guest.packages ]; then
  tree guest guest.packages aptcache
  mkdir -p tree/var/lib/guests
  truncate -s 1G tree/var/lib/guests/disk.img
  mke2fs -q -t ext4 -d guest tree/var/lib/guests/disk.img
fi
mksquashfs tree medium/live/filesystem.squashfs -comp zstd -quiet -no-progress -e boot
for entry in plain xen; do # ci/bench puts one or the other on the medium
  cat >"$entry.cfg" <<'MENU'
serial --unit=0 --speed=115200
terminal_output console serial
MENU
done
echo 'linux /boot/vmlinuz boot=live console=ttyS0,115200
initrd /boot/initrd
boot' >>plain.cfg
echo 'multiboot2 /boot/xen.gz placeholder console=com1,vga com1=115200,8n1 dom0_mem=1024M,max:1024M
module2 /boot/vmlinuz placeholder boot=live console=hvc0
module2 --nounzip /boot/initrd
boot' >>xen.cfg
cp xen.cfg medium/boot/grub/grub.cfg # the longer one: the other fits in its place
grub-mkrescue --output=stock.iso medium >/dev/null 2>&1
