#!/usr/bin/env bash
# Tries the verbs wire for real where there is no RDMA device: boots Debian's own kernel under QEMU with the soft RoCE driver, on
# an initramfs made of Debian's packages and our programs, and judges what the guests say (guest/init.sh).
#
#   guest.sh PROGRAMS FOLDER [alone|pair]
#
# PROGRAMS is where the build put them; FOLDER keeps packages, the image and the guests' consoles.
#
# First one guest: what is said where library, device, GID or locked memory are wanting; the conformance suite of wires and
# collectives, on one device and on two side by side; the training of a small network on two ranks; a
# parameter server; a transformer along a tensor axis and as a pipeline; bandwidth beside ib_write_bw. Then two guests, joined by a link that loses and delays packets, with two ranks each: allreduces, and a cut
# in the middle of one, after which every rank must end with a verdict that names another and why.
# Exit status 77, with a word, where QEMU or the packages cannot be had. No root is needed, and no hardware virtualisation.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
programs=${1:?where are the programs?} folder=${2:?where to work?}
packages=(perftest iproute2 ibverbs-providers busybox-static)
modules=(rdma_rxe rdma_ucm crc32_generic dummy virtio_pci virtio_net sch_netem)
alone_limit=300 pair_limit=400

skip() {
    echo "skipped: $*"
    exit 77
}
[ "$(uname -m)" = x86_64 ] || skip "the guests are x86_64, this machine is $(uname -m)"
for tool in qemu-system-x86_64 apt-get apt-cache dpkg-deb ldd; do
    command -v $tool >/dev/null || skip "there is no $tool here (Debian: qemu-system-x86 apt dpkg libc-bin)"
done
for program in verbs_test_verbs_device verbs_guest_ranks weft-bench weftrun fit_custom train_clicks train_gpt; do
    [ -x "$programs/$program" ] || skip "this build has no $program"
done
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
running=()
trap 'for guest in "${running[@]}"; do kill "$guest" 2>/dev/null || true; done' EXIT

# --- packages ---

# The kernel that Debian's metapackage stands for.
find_kernel() { apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1 || true; }

# Libraries of the packages, as apt would install them on a bare machine; libc itself is this machine's.
find_packages() {
    : >"$folder/no-packages"
    apt-get -s -o Dir::State::status="$folder/no-packages" --no-install-recommends install "${packages[@]}" 2>/dev/null |
        sed -n 's/^Inst \([^ ]*\) .*/\1/p' | grep -vE '^(libc6|libpam|libcrypt1$|libgcc|debconf|passwd|adduser|gcc-)'
}

fetch() {
    local kernel list
    kernel=$(find_kernel)
    [ -n "$kernel" ] || skip "apt knows no linux-image-amd64 (apt-get update?)"
    version=${kernel#linux-image-}
    root=$folder/root-$version
    [ ! -e "$root/complete" ] || return 0
    mapfile -t list < <(find_packages)
    [ ${#list[@]} -gt 4 ] || skip "apt cannot resolve ${packages[*]} (apt-get update?)"
    rm -rf "$folder"/root-* "$folder/packages" && mkdir -p "$root" "$folder/packages"
    (cd "$folder/packages" && timeout 120 apt-get -qq download "$kernel" "${list[@]}" >../download.log 2>&1) ||
        skip "packages cannot be downloaded: $(tail -n 1 "$folder/download.log")"
    for package in "$folder"/packages/*.deb; do
        dpkg-deb --fsys-tarfile "$package" |
            tar -x -C "$root" --wildcards --exclude='*/share/*' --exclude='*/kernel/sound/*' --exclude='*/drivers/gpu/*' \
                --exclude='*/drivers/media/*' --exclude='*/net/wireless/*' --exclude='*/net/ethernet/*' './*'
    done
    rm -rf "$folder/packages"
    touch "$root/complete"
}

# --- the image ---

# Copies the libraries that files need: those of the packages, else this machine's.
add_libraries() {
    local library
    ! LD_LIBRARY_PATH=$libraries ldd "$@" | grep 'not found' || skip "libraries that cannot be found, as said above"
    for library in $(LD_LIBRARY_PATH=$libraries ldd "$@" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/lib[^ ]*\) (.*/\1/p' | sort -u); do
        case $library in
            */ld-linux*) cp -Lu "$library" "$tree/lib64/" ;;
            *) cp -Lu "$library" "$tree/lib/" ;;
        esac
    done
}
add_programs() {
    cp "$@" "$tree/bin"
    add_libraries "$@"
}

# Copies modules and what they depend on.
add_modules() {
    local name file
    for name in "$@"; do
        file=$(find "$root" -path "*/modules/*" -name "${name//_/[-_]}.ko*" -print -quit)
        [ -n "$file" ] || continue # it is a part of the kernel
        [ ! -e "$tree/lib/modules/$version/$(basename "${file%.xz}")" ] || continue
        cp "$file" "$tree/lib/modules/$version/"
        file=$tree/lib/modules/$version/$(basename "$file")
        case $file in *.xz) xz -d "$file" && file=${file%.xz} ;; esac
        add_modules $(tr '\0' '\n' <"$file" | sed -n 's/^depends=//p' | tr ',' ' ')
    done
}

build_image() {
    local box=$root/bin/busybox name
    tree=$folder/tree libraries=$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu
    [ -x "$box" ] || box=$root/usr/bin/busybox
    rm -rf "$tree"
    mkdir -p "$tree"/{bin,sbin,dev,proc,sys,tmp,lib64,etc/libibverbs.d,lib/modules/$version,usr/lib/x86_64-linux-gnu/libibverbs}
    for name in $("$box" --list); do ln -sf busybox "$tree/bin/$name"; done
    cp --remove-destination "$box" "$tree/bin/busybox"
    rm -f "$tree"/bin/{ip,tc} "$tree/bin/init"
    for name in ip tc rdma ib_write_bw; do
        add_programs "$(find "$root" -name $name -type f -perm -u+x | head -n 1)"
    done
    add_programs "$programs"/{verbs_test_verbs_device,verbs_guest_ranks,weft-bench,weftrun,fit_custom,train_clicks,train_gpt}
    cp "$root/etc/libibverbs.d/rxe.driver" "$tree/etc/libibverbs.d/"
    name=$(find "$root" -name 'librxe-rdmav*.so' | head -n 1)
    cp "$name" "$tree/usr/lib/x86_64-linux-gnu/libibverbs/"
    add_libraries "$name"
    strip --strip-debug "$tree"/bin/{verbs_test_verbs_device,verbs_guest_ranks,weft-bench,fit_custom,train_clicks,train_gpt} 2>/dev/null || true
    add_modules "${modules[@]}"
    cp "$(find "$root" -path "*/modules/*" -name modules.builtin -print -quit)" "$tree/lib/modules/$version/"
    "$box" depmod -b "$tree" "$version"
    cp "$here/guest/init.sh" "$tree/init" && chmod +x "$tree/init"
    (cd "$tree" && find . | "$box" cpio -o -H newc 2>/dev/null) >"$folder/image"
}

# --- guests ---

boot() { # boot PART OPTION...
    local part=$1
    shift
    qemu-system-x86_64 -accel tcg,thread=multi -m 2048 -nographic -no-reboot -nodefaults -serial "file:$folder/$part.log" \
        -kernel "$(find "$root/boot" -name 'vmlinuz-*')" -initrd "$folder/image" \
        -append "console=ttyS0 quiet panic=-1 part=$part" "$@" </dev/null >"$folder/$part.qemu" 2>&1 &
    running+=($!)
}

# Until all guests have powered off, or the limit is over.
join() { # join LIMIT
    local end=$((SECONDS + $1)) guest
    for guest in "${running[@]}"; do
        while kill -0 "$guest" 2>/dev/null; do
            [ $SECONDS -lt $end ] || break 2
            sleep 0.2
        done
    done
    for guest in "${running[@]}"; do kill "$guest" 2>/dev/null || true; done
    running=()
}

failed=0
fail() {
    echo "FAILED: $*"
    failed=1
}
# Whether a guest's console has so many lines of a pattern.
expect() { # expect PART COUNT PATTERN
    local count
    count=$(grep -acE "$3" "$folder/$1.log" || true)
    [ "$count" = "$2" ] && return
    fail "guest '$1' should have said $2 times: $3"
}
hear() { # hear PART: what it said that people want to read
    tr -d '\r' <"$folder/$1.log" | grep -aE '^(verdict|rank|turn|one rank|bandwidth|sendrecv|the link|# |\[FAIL|\[----)|^ +1M' | sed "s/^/$1: /" || true
}

try_alone() {
    local name
    boot alone -smp 2 -nic none
    join $alone_limit
    hear alone
    for name in "nothing there" "bad input" "conformance and collectives" training "parameter server" "model parallelism" bandwidth "two devices side by side" part; do expect alone 1 "^verdict $name: ok"; done
    echo "one guest: after $SECONDS s"
}

# Each rank names another, on each side at least one that is beyond the cut; its neighbour may have left on account of that.
try_pair() {
    local i part link=$folder/link card=virtio-net-pci,romfile=,netdev=net
    rm -f "$link"
    boot first -smp 2 -netdev "stream,id=net,server=on,addr.type=unix,addr.path=$link" -device $card,mac=52:54:00:00:00:01
    # Who dials before the first one listens has no link, and is not told.
    for ((i = 0; i < 150; i++)); do [ ! -S "$link" ] || break; sleep 0.2; done
    sleep 0.2
    boot second -smp 2 -netdev "stream,id=net,server=off,addr.type=unix,addr.path=$link" -device $card,mac=52:54:00:00:00:02
    join $pair_limit
    for part in first second; do
        hear $part
        expect $part 1 "^verdict allreduce with loss and delay: ok"
        expect $part 1 "^verdict a link that is cut: ok"
        expect $part 2 "^rank [0-3] sums 10 in .* over verbs"
        expect $part 1 "^the link is cut"
        expect $part 2 "^rank [0-3] ended [0-9]{1,2}\.[0-9] s after the cut: WEFT_E_[A-Z_]+ by rank [0-3]: "
    done
    grep -qaE "^rank [01] ended .* by rank [23]: " "$folder/first.log" || fail "ranks 0 and 1 blame nobody beyond the cut"
    grep -qaE "^rank [23] ended .* by rank [01]: " "$folder/second.log" || fail "ranks 2 and 3 blame nobody beyond the cut"
    ! grep -aE "^rank ([0-3]) ended .* by rank \1: " "$folder"/{first,second}.log || fail "a rank blames itself"
    grep -qa "^rank .* after the cut: .*transport retries exceeded" "$folder"/{first,second}.log ||
        fail "no rank was told that the network gave no answer"
    echo "two guests: after $SECONDS s"
}

fetch
build_image
echo "image: $(du -m "$folder/image" | cut -f1) MiB, kernel $version, after $SECONDS s"
rm -f "$folder"/{alone,first,second}.{log,qemu}
case ${3:-both} in alone | both) try_alone ;; esac
case ${3:-both} in pair | both) try_pair ;; esac
[ $failed = 0 ] && exit
for part in alone first second; do tail -n 25 "$folder/$part.log" "$folder/$part.qemu" 2>/dev/null || true; done
exit 1
