# The guest's IOMMU on and off and on again by resets of one machine, with one back-end. Sourced after adverse.sh.
#
# QEMU keeps the kernel's words of `-append` as long as it lives. So the machine boots from a disk whose loader (GRUB, from Debian's
# packages, unpacked and never installed) reads the words anew each time: the host writes others before a reset.

# Sectors of that disk: the loader, its words, the kernel, and behind it the initramfs.
boot_words_at=2000 boot_words_sectors=4 boot_kernel_at=2048

# boot_disk FILE    a disk that starts the guest's kernel; nothing of it changes but the words
boot_disk() {
  local file=$1 modules kernel initramfs sectors behind
  modules=$("$tree/Scripts/lab/package" bookworm amd64 grub-pc-bin)/usr/lib/grub/i386-pc
  kernel=$("$tree/Scripts/lab/package" bookworm amd64 "linux-image-$(cat "$("$tree/Scripts/lab/kernel" 6.1)/version")")
  kernel=$(echo "$kernel"/boot/vmlinuz-*)
  initramfs=$("$tree/Scripts/lab/initramfs" 6.1)
  sectors=$((($(stat -c %s "$kernel") + 511) / 512)) behind=$((($(stat -c %s "$initramfs") + 511) / 512))
  boot_files="(hd0)$boot_kernel_at+$sectors (hd0)$((boot_kernel_at + sectors))+$behind"
  truncate -s $(((boot_kernel_at + sectors + behind) * 512)) "$file"
  echo "configfile (hd0)$boot_words_at+$boot_words_sectors" >"$file.first"
  "$("$tree/Scripts/lab/package" bookworm amd64 grub-common)/usr/bin/grub-mkimage" -d "$modules" -O i386-pc -p '(hd0)' -c "$file.first" \
    -o "$file.loader" biosdisk linux configfile normal || return 1
  boot_sectors "$file" 0 <"$modules/boot.img"
  boot_sectors "$file" 1 <"$file.loader"
  boot_sectors "$file" $boot_kernel_at <"$kernel"
  boot_sectors "$file" $((boot_kernel_at + sectors)) <"$initramfs"
  rm "$file.first" "$file.loader"
}
boot_sectors() { dd of="$1" bs=512 seek="$2" conv=notrunc iflag=fullblock status=none; }

# boot_words FILE WORDS    what the kernel is told from the next reset on
boot_words() {
  local size=$((boot_words_sectors * 512))
  printf 'linux %s %s\ninitrd %s\nboot\n%*s' "${boot_files% *}" "$2" "${boot_files#* }" $size "" | head -c $size | boot_sectors "$1" $boot_words_at
}

# A driver that translates, one that does not, and so on, of one machine: each finds what the one before wrote. (R015, R016, R114)
# Two resets of four are in the middle of writes, the other two are the guest's own reboot.
job_toggle() {
  local folder=$1 mode=$2 started reason= turn=0 turns=${TURNS:-4} threads=16 state=on seen group accepted
  local name="$mode IOMMU toggled by reboots" words="$machine_words sluice.vda=sequence sluice.threads=16 sluice.arena=16"
  declare -A tell_kernel=([on]="intel_iommu=on iommu.strict=1" [off]="intel_iommu=off") booted=([on]=0 [off]=0)
  started=$(date +%s%N)
  adverse_able "$name" "$mode" || return 0
  # a boot for each turn, from a BIOS disk
  local MACHINE_SECONDS=$((limit + turns * limit / 3))
  boot_disk "$folder/boot.img" || reason="no disk to boot from"
  if [ -z "$reason" ]; then
    boot_words "$folder/boot.img" "$words ${tell_kernel[on]}"
    MACHINE_BOOT=$folder/boot.img adverse_begin "$mode" ""
  fi
  while [ -z "$reason" ]; do
    until_holds 180 more_heard "$folder" "begin" $((turn + 1)) && hear "$folder" "ack" $((3 + turn % 4)) 60 \
      || { reason="with the IOMMU $state, boot $turn: nothing was written"; break; }
    group=$(said vda group) accepted=$(said vda access_platform)
    case $state-$group in on-DMA|off-none) ;; *) reason="boot $turn: told to have the IOMMU $state, the guest's disk has the group $group" ;; esac
    [ "$accepted" = yes ] || reason=${reason:-boot $turn: the driver did not take bit 33}
    # QEMU translates in both states, with the IOMMU off by identity
    reason=${reason:-$(sampled disk "$mode")}
    [ -z "$reason" ] || break
    booted[$state]=$((booted[$state] + 1))
    [ $turn -lt "$turns" ] || break
    turn=$((turn + 1))
    if [ $state = on ]; then state=off; else state=on; fi
    boot_words "$folder/boot.img" "$words ${tell_kernel[$state]}"
    seen=$(events "$folder" RESET)
    if [ $((turn % 4)) -lt 2 ]; then
      sleep "0.0$((turn * 37 % 100))"
      ask "$folder" system_reset >/dev/null || reason="the machine cannot be reset"
    else
      tell "$folder" reboot
      resets() { [ "$(events "$folder" RESET)" -gt "$seen" ] || ! machine_runs "$folder"; }
      until_holds 60 resets || reason="boot $turn: the guest does not reboot"
    fi
  done
  [ -n "$reason" ] || tell "$folder" stop
  adverse_finish "$name" "$mode" "booted ${booted[on]} times with the IOMMU on and ${booted[off]} times with it off, in turn" $threads
}
