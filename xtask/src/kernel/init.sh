#!/bin/busybox sh
# The first program in a guest: makes the host's files its root, runs one script there, says how it ended, and stops.
# The first serial port is for what the script says, the kernel's console is the second.
/bin/busybox mkdir -p /bin /proc /sys /dev /host /written /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module"; done < /modules/order
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose host /host || poweroff -f
mount -t tmpfs tmpfs /written
mkdir /written/upper /written/work
mount -t overlay -o lowerdir=/host,upperdir=/written/upper,workdir=/written/work overlay /root

for moved in proc sys dev; do mount --move "/$moved" "/root/$moved"; done
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts devpts /root/dev/pts
for empty in dev/shm run tmp; do mount -t tmpfs tmpfs "/root/$empty"; done
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
mount -t bpf bpf /root/sys/fs/bpf
script= modules=
for word in $(cat /root/proc/cmdline); do
    case $word in
    sluice.script=*) script=${word#*=} ;;
    sluice.modules=*) modules=${word#*=} ;;
    esac
done
if [ -n "$modules" ]; then
    mkdir -p "/root/lib/modules/$(uname -r)"
    mount --bind "/root$modules" "/root/lib/modules/$(uname -r)"
fi
# The kernel looks for modprobe below this root, which is not the script's.
printf '#!/bin/sh\nexec chroot /root /sbin/modprobe "$@"\n' > /modprobe
chmod 755 /modprobe
echo /modprobe > /root/proc/sys/kernel/modprobe
ip link set lo up

export PATH=/usr/sbin:/usr/bin:/sbin:/bin
{
    chroot /root /bin/sh "$script" < /root/dev/null 2>&1
    echo "sluice-guest: ended with $?"
} | cat > /root/dev/ttyS0
poweroff -f
