#!/bin/bash
# The kernels' own tests with AVX-512 and VNNI on a machine that has neither: in Bochs, which emulates a whole computer. It starts a kernel of Linux
# with the tests and nothing else from a disk of its own, and what they print comes back through its serial port. All of them take about an hour, those of
# matrix products two minutes.
#
# Needs a Bochs built with --enable-x86-64 --enable-avx --enable-evex --enable-all-optimizations --with-nogui (3.0 was tried; Debian's has only its
# debugger, which is slow, and other displays), Debian's bochsbios, vgabios, isolinux, syslinux-common, xorriso, cpio and busybox-static, and a
# kernel for amd64, of linux-image-cloud-amd64, say.
#
#   scripts/avx512.sh [FILTER...]     (default: all)
#
# BOCHS   the emulator (default: bochs)
# KERNEL  the kernel (default: the newest /boot/vmlinuz-*)
# CPU     the model it emulates (default: tigerlake)
#
# With CPU=sapphire_rapids and a Bochs built with --enable-amx, too, AMX is tested as well. Bochs 3.0 needs to be mended in three places for that:
#
# - cpu/avx/amx.cc multiplies signed bytes as unsigned ones (DPBDSS, DPBDSU, DPBDUS);
# - cpu/avx/avx512_bf16.cc takes the upper half of VCVTNE2PS2BF16 from beyond the end of its operand;
# - Linux uses AMX only with XFD: the bits of CPUID 0xd.1 eax[4] and 0xd.18 ecx[2], and the registers 0x1c4 and 0x1c5, of which
#   reading 0 and ignoring what is written is enough for a single process.
set -euo pipefail
cd "$(dirname "$0")/.."
bochs=${BOCHS:-bochs}
kernel=${KERNEL:-$(ls /boot/vmlinuz-* | sort -V | tail -1)}
crate=target/avx512-kernels

scripts/kernels-crate.sh "$crate"
cd "$crate"
target=x86_64-unknown-linux-gnu
export RUSTFLAGS="-C target-feature=+crt-static"
binary=$(cargo test --target "$target" --no-run --message-format json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
[ -x "$binary" ] || { echo "no tests were built" >&2; exit 1; }

rm -rf disk root && mkdir -p disk/isolinux root/bin root/proc
cp /bin/busybox root/bin/
cp "$binary" root/tests && strip root/tests
cat > root/init <<SH
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/tests --test-threads 1 --skip limits $* && /bin/busybox echo all-passed
/bin/busybox sleep 1
/bin/busybox poweroff -f
SH
chmod +x root/init
(cd root && find . | cpio -o -H newc --quiet | gzip -1) > disk/initrd
cp "$kernel" disk/vmlinuz
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 disk/isolinux/
# 580 is FSRM, which Bochs announces without ERMS; the kernel's own copies then have no end.
cat > disk/isolinux/isolinux.cfg <<CFG
default tests
prompt 0
timeout 1
label tests
  kernel /vmlinuz
  append initrd=/initrd console=ttyS0 quiet loglevel=3 nokaslr mitigations=off clearcpuid=580 random.trust_cpu=on
CFG
xorriso -as mkisofs -quiet -o disk.iso -b isolinux/isolinux.bin -c isolinux/boot.cat \
    -no-emul-boot -boot-load-size 4 -boot-info-table disk
cat > bochsrc <<CFG
display_library: nogui
memory: guest=1024, host=1024
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
cpu: model=${CPU:-tigerlake}, count=1, ips=50000000, reset_on_triple_fault=0
ata0-master: type=cdrom, path=disk.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=serial.txt
log: bochs.log
panic: action=fatal
clock: sync=none
CFG
rm -f serial.txt && touch serial.txt
tail -f -n +1 serial.txt & reader=$!
# It ends with an error when the computer is switched off.
"$bochs" -q -f bochsrc < /dev/null > bochs.out 2>&1 || true
sleep 1
kill "$reader"
grep -q all-passed serial.txt
