# The machines a guest can be, and what each needs. Sourced by Scripts/lab/guest.

# platform_of NAME    sets everything about the machine but its devices
platform_of() {
  program=qemu-system-x86_64 architecture=amd64 machine=q35 kernel=6.1 memory=640M words= devices=() ats= bit_usually=on
  processor=(-cpu "qemu64,+rdrand,+ssse3,+sse4.1,+sse4.2")
  local vtd=(-device "intel-iommu,intremap=off,device-iotlb=on")
  case $1 in
    off) bit_usually=off ;;
    strict) devices=("${vtd[@]}") words="intel_iommu=on iommu.strict=1" ats=on ;;
    lazy) devices=("${vtd[@]}") words="intel_iommu=on iommu.strict=0" ats=on ;;
    pt) devices=("${vtd[@]}") words="intel_iommu=on iommu=pt" ats=on ;;
    amd) devices=(-device "amd-iommu,intremap=off") words="amd_iommu=on" processor=(-cpu EPYC) ;;
    virtio) devices=(-device virtio-iommu-pci) kernel=6.12 ats=on ;;
    # every DMA through a buffer of the kernel's own, as in a guest whose memory is encrypted
    swiotlb) words="swiotlb=32768,force" ;;
    # the first domain of a paravirtualised Xen: what it calls physical is not the machine's
    xen) memory=1G ;;
    smmu) program=qemu-system-aarch64 architecture=arm64 machine=virt,iommu=smmuv3,gic-version=3 processor=(-cpu cortex-a57) ;;
    # memory in steps of 256 MiB; what its firmware would protect against is of no use in an emulation
    spapr) program=qemu-system-ppc64 architecture=ppc64el memory=768M processor=()
      machine=pseries,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off ;;
    zpci) program=qemu-system-s390x architecture=s390x machine=s390-ccw-virtio processor=() ;;
    *) die "no platform '$1'; there are: off strict lazy pt amd virtio swiotlb xen smmu spapr zpci" ;;
  esac
}

# platform_boot KERNEL INITRAMFS WORDS    sets `boot`: kernel, command line and serial lines. A second line for the guest's
# reports exists on x86-64 alone; elsewhere the console carries them, and the kernel is told to be brief.
platform_boot() {
  local console
  case $architecture in
    amd64)
      boot=(-serial "file:$folder/console.log" -serial chardev:talk)
      if [ "$iommu" = xen ]; then
        local hypervisor
        hypervisor=$("$tree/Scripts/lab/package" bookworm amd64 xen-hypervisor-4.17-amd64)
        gzip -dc "$hypervisor"/boot/xen-4.17-amd64.gz >"$folder/xen"
        boot+=(-kernel "$folder/xen" -append "console=com1 com1=115200,8n1 dom0_mem=768M loglvl=warning"
          -initrd "$1 console=hvc0 loglevel=5 ${3//,/,,},$2")
        return
      fi
      if [ -n "$firmware" ]; then
        # it writes to its variables, so they are a copy
        local ovmf
        ovmf=$("$tree/Scripts/lab/package" bookworm amd64 ovmf)/usr/share/OVMF
        cp "$ovmf/OVMF_VARS_4M.fd" "$folder/variables.fd"
        boot+=(-drive "if=pflash,format=raw,readonly=on,file=$ovmf/OVMF_CODE_4M.fd"
          -drive "if=pflash,format=raw,file=$folder/variables.fd")
        return
      fi
      boot+=(-kernel "$1" -initrd "$2" -append "console=ttyS0 loglevel=5 tsc=reliable $3")
      return ;;
    arm64) console=ttyAMA0 ;;
    ppc64el) console=hvc0 ;;
    s390x) console=ttysclp0 ;;
  esac
  boot=(-serial chardev:talk -kernel "$1" -initrd "$2" -append "console=$console loglevel=4 sluice.talk=/dev/$console $3")
}
