#!/usr/bin/env bash
# Sees to the programs the tests need. On Debian and its family what is missing is installed, as root or with sudo;
# elsewhere it is named and the status is 1. Says and does nothing when all is there.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

# program:package. fsck.erofs is not among them: the tests take the one the builder has locked, since a release whose
# own cannot read zstd is common still.
needed="qemu-img:qemu-utils xorriso:xorriso isoinfo:genisoimage sgdisk:gdisk fsck.vfat:dosfstools mcopy:mtools
  e2fsck:e2fsprogs cpio:cpio diffoscope:diffoscope-minimal newuidmap:uidmap unshare:util-linux setpriv:util-linux
  timeout:coreutils cc:gcc nginx:nginx-light minisign:minisign mkfs.erofs:erofs-utils zstd:zstd
  fusermount3:fuse3 docker-registry:docker-registry openssl:openssl curl:curl chromium:chromium chromedriver:chromium-driver"
qemu_least=8 # older ones end a nested Xen with faults of their own (their SMAP is broken)

missing=()
for pair in $needed; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
# `|| true`: with pipefail a missing QEMU would end this script without a word, which is there to install it.
qemu_has=$({ qemu-system-x86_64 --version 2>/dev/null || true; } | sed -n '1s/.*version \([0-9]*\).*/\1/p')
[ "${qemu_has:-0}" -ge $qemu_least ] || missing+=(qemu-system-x86 qemu-utils)
[ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || [ -d /usr/share/edk2 ] || missing+=(ovmf)

say() { echo "ci/lib/install.sh: $*" >&2; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
apt() { # transient failures of a mirror are common; a lock held by another installer is waited for
  for attempt in 1 2 3; do
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=5 -o DPkg::Lock::Timeout=600 "$@" && return
    say "apt-get $1 failed (attempt $attempt of 3)"
    sleep $((attempt * 10))
  done
  return 1
}

if [ ${#missing[@]} -gt 0 ]; then
  if ! command -v apt-get >/dev/null; then
    say "these are missing (names of Debian packages): ${missing[*]}; QEMU must be $qemu_least or newer"
    exit 1
  fi
  if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
    say "run this as root, or install sudo: missing ${missing[*]}"
    exit 1
  fi
  say "installing ${missing[*]}"
  apt update
  from=()
  offered=$(apt-cache policy qemu-system-x86 | sed -n 's/.*Candidate: \([0-9]*:\)\?\([0-9]*\).*/\2/p')
  if [[ " ${missing[*]} " == *" qemu-system-x86 "* ]] && [ "${offered:-0}" -lt $qemu_least ]; then
    . /etc/os-release
    backports=$VERSION_CODENAME-backports
    if ! apt-get indextargets --format '$(RELEASE)' | grep -qx "$backports"; then
      # From the mirror this host uses already.
      mirror=$(apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(REPO_URI)' |
        awk -v want="$VERSION_CODENAME" '$1 == "Debian" && $2 == want { print $3; exit }')
      [ -n "$mirror" ] || { say "no QEMU $qemu_least here and no Debian mirror to take backports from"; exit 1; }
      printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' "$mirror" "$backports" \
        /usr/share/keyrings/debian-archive-keyring.gpg | as_root tee "/etc/apt/sources.list.d/$backports.sources" >/dev/null
      apt update
    fi
    from=(-t "$backports")
  fi
  apt install --no-install-recommends "${from[@]}" "${missing[@]}" >&2
fi

# A second user, under whom the second of two builds runs that must be equal, and who mounts a store. On a desk nobody is added.
if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && ! id gasthaus-ci >/dev/null 2>&1; then
  useradd --create-home --shell /bin/sh gasthaus-ci
  grep -q '^gasthaus-ci:' /etc/subuid || usermod --add-subuids 300000-365535 --add-subgids 300000-365535 gasthaus-ci
fi

# Everybody may open it wherever udev sees to it; in a container nobody has.
if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && [ -c /dev/fuse ]; then chmod 666 /dev/fuse; fi
