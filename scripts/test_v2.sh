#!/usr/bin/env bash
# The sandbox's tests on a kernel with nothing but cgroup v2: boots Debian's kernel in qemu (KVM where there is
# one) on a writable view of this machine's own root, and runs the tests of the direct runner there.
# Needs qemu-system-x86, gcc, cpio and apt-get (which downloads the kernel; nothing is installed).
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD work=$PWD/target/v2
[ $# -gt 0 ] || set -- tests/attacks tests/integration/test_{sandbox,cgroup_v2,soak}.py -k "direct or cgroup_v2"
for tool in qemu-system-x86_64 gcc cpio apt-get; do
  command -v $tool >/dev/null || { echo "missing: $tool. Debian: apt install qemu-system-x86 gcc cpio" >&2; exit 2; }
done
mkdir -p "$work"
if [ ! -d "$work/kernel" ]; then
  package=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image/ { print $2; exit }')
  echo "downloading $package"
  (cd "$work" && apt-get download -qq "$package" && dpkg -x "$package"_*.deb kernel.part && mv kernel.part kernel)
fi
version=$(ls "$work/kernel/lib/modules")
modules=$work/kernel/lib/modules/$version/kernel
rm -rf "$work/initrd" && mkdir -p "$work/initrd"
gcc -O1 -static -o "$work/initrd/init" scripts/v2/init.c
for name in drivers/virtio/{virtio_ring,virtio,virtio_pci_legacy_dev,virtio_pci_modern_dev,virtio_pci} \
  net/9p/{9pnet,9pnet_virtio} fs/{netfs/netfs,fscache/fscache,9p/9p,overlayfs/overlay}; do
  cp "$modules/$name.ko" "$work/initrd/"
  echo "/${name##*/}.ko" >>"$work/initrd/modules"
done
(cd "$work/initrd" && find . | cpio --quiet -o -H newc) >"$work/initrd.cpio"

cat >"$work/run" <<RUN
export HOME=/root PATH=$PATH PYTHONPATH=$here/python PYTHONDONTWRITEBYTECODE=1 TERM=dumb
cd $here
echo "k15-v2: kernel \$(uname -r), controllers \$(cat /sys/fs/cgroup/cgroup.controllers)"
.venv/bin/python -m pytest -q -p no:cacheprovider -rf --tb=line --timeout=900 --durations=10 $(printf '%q ' "$@")
echo "k15-v2: pytest ended with \$?"
RUN
# boot ACCELERATOR SECONDS WORD...: the machine's console.
boot() {
  timeout "$2" nice -n 10 qemu-system-x86_64 -accel "$1" -cpu max,arch-capabilities=off -smp 2 -m 4G -nographic -no-reboot \
    -nic none -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap \
    -kernel "$work/kernel/boot/vmlinuz-$version" -initrd "$work/initrd.cpio" \
    -append "console=ttyS0 quiet panic=-1 cgroup_no_v1=all ${*:3}" </dev/null 2>&1
}
accelerator=tcg,thread=multi slow=24
# Inside a virtual machine KVM may be there and not work.
if [ -w /dev/kvm ] && { boot kvm 20 || true; } | grep -q "k15-v2: up"; then accelerator=kvm slow=1; fi
echo "booting with $accelerator"
boot "$accelerator" "${K15_V2_TIMEOUT:-3000}" "K15_RUN=$work/run" "K15_SLOW=${K15_SLOW:-$slow}" | tee "$work/log" | grep --line-buffered -v SeaBIOS
grep -q "k15-v2: pytest ended with 0" "$work/log"
