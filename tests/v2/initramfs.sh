#!/bin/busybox sh
# The guest's first program: the disks' drivers, then process 1 from the root or the tree's disk.
for name in virtio_ring virtio virtio_mmio virtio_console virtio_blk; do
  /bin/busybox insmod /m/$name.ko
done
/bin/busybox mkdir -p /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t sysfs sys /sys

# the mount of the disk whose serial number is $1 on $2
mount_disk() {
  for disk in /sys/block/vd*; do
    if [ "$(/bin/busybox cat "$disk/serial")" = "$1" ]; then
      /bin/busybox mount -t ext4 -o noatime "/dev/${disk##*/}" "$2"
    fi
  done
}

mount_disk root /root
/bin/busybox mkdir -p "/root$tree"
mount_disk tree "/root$tree"
/bin/busybox mount --move /dev /root/dev
/bin/busybox umount /sys
exec /bin/busybox switch_root /root "${first:-$tree/tests/v2/init.sh}"
