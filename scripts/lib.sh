# What quickstart.sh and test.sh share: installing, looking for optional parts, building. Sourced, not run.
#
# Variables, all optional:
#   WEFT_BUILD_DIR  where to build (default: build/ beside this source; the source itself may be read-only)
#   WEFT_RUN_DIR    where quickstart.sh leaves its results (default: runs/quickstart/ beside this source)
#   WEFT_JOBS       compilers at once (default: the number of cores)
#   WEFT_REQUIRE    optional parts that must be there: any of cuda,nccl,verbs,mpi, separated by commas
#   WEFT_INSTALL    "no" leaves the machine's packages alone
source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build_dir=${WEFT_BUILD_DIR:-$source_dir/build}
jobs=${WEFT_JOBS:-$(getconf _NPROCESSORS_ONLN)}

say() { printf '%s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Makes a folder and gives its absolute path; an error names the variable that can move it.
make_folder() { # make_folder PATH VARIABLE
    mkdir -p "$1" 2>/dev/null && [ -w "$1" ] || die "cannot write to $1; set $2 to a folder that can be written"
    (cd "$1" && pwd)
}

# --- installing ---

# What every build wants: NAME of a Debian package and what it is for, as people call it.
packages_build=(
    "gcc C compiler" "libc6-dev C library headers" "cmake build system" "ninja-build build tool"
    "ccache compiler cache" "pkg-config library finder" "zlib1g-dev zlib (reads gzip)"
    "libsodium-dev libsodium (authentication)" "libibverbs-dev libibverbs headers (RDMA)"
    "dataset-fashion-mnist Fashion-MNIST images")
packages_test=("g++ C++ compiler" "make build tool" "libcriterion-dev Criterion (tests)" "python3 Python (checks)" "python3-venv Python environments (checks)"
    "bsdutils script (terminal tests)" "procps process tools" "openmpi-bin Open MPI" "libopenmpi-dev Open MPI headers"
    "mpich MPICH" "libmpich-dev MPICH headers" "slurmctld Slurm" "slurmd Slurm nodes"
    "munge Munge (for Slurm)" "python3-yaml PyYAML (checks)" "libsimgrid-dev SimGrid (simulated clusters)")
packages_guest=("qemu-system-x86 QEMU (guests with an RDMA device)")

is_installed() { [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null)" = "ii " ]; }

as_root() {
    if [ "$(id -u)" = 0 ]; then
        env "$@"
    elif [ -t 0 ]; then
        sudo env "$@"
    else
        sudo -n env "$@"
    fi
}

# Installs those of the given packages that are missing. Silent work of a moment where none is.
install_packages() { # install_packages "NAME WORDS"...
    local missing=() words=() entry
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say "This is not a Debian machine, so nothing is installed. Needed are: $(printf '%s; ' "${@#* }")"
        return
    fi
    for entry in "$@"; do
        is_installed "${entry%% *}" || { missing+=("${entry%% *}") && words+=("  ${entry%% *}: ${entry#* }"); }
    done
    if [ ${#missing[@]} = 0 ]; then
        say "Nothing to install: everything needed is there."
        return
    fi
    if [ "${WEFT_INSTALL:-yes}" = no ]; then
        say "Missing, and not installed because WEFT_INSTALL=no: ${missing[*]}"
        return
    fi
    say "Installing with apt:"
    printf '%s\n' "${words[@]}"
    if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
        die "installing needs root: run this as root, install sudo, or have somebody install: ${missing[*]}"
    fi
    local log options=(-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -qq -y --no-install-recommends)
    log=$(mktemp)
    if ! { as_root DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=3 -qq update ||
        say "(the package lists could not be refreshed; going on with those there are)"; } >"$log" 2>&1 ||
        ! as_root DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install "${missing[@]}" >>"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "apt could not install: ${missing[*]}"
    fi
    rm -f "$log"
}

# --- optional parts ---

library_path() { # library_path NAME: where the loader finds it, empty where it does not
    { /sbin/ldconfig -p 2>/dev/null || ldconfig -p 2>/dev/null || true; } |
        awk -v name="$1" '$1 == name && !found { found = $NF } END { print found }'
}
first_program() { # the first of the given programs that is there
    local program
    for program in "$@"; do command -v "$program" && break; done || true
}

# Says which optional parts of the machine were found. Those that WEFT_REQUIRE names must be among them.
report_parts() {
    local nvcc driver nccl verbs adapters mpi part missing=()
    nvcc=$(first_program nvcc "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" /usr/local/cuda/bin/nvcc)
    driver=$(library_path libcuda.so.1)
    nccl=$(library_path libnccl.so.2)
    verbs=$(library_path libibverbs.so.1)
    adapters=$(ls /sys/class/infiniband 2>/dev/null || true)
    mpi=$(first_program mpirun mpiexec)
    say "Optional parts, used where they are found:"
    say "  CUDA toolkit: ${nvcc:-not found, so no GPU code is built}"
    say "  CUDA driver:  ${driver:-not found, so no GPU is used}"
    say "  NCCL:         ${nccl:-not found}"
    say "  verbs:        ${verbs:-not found}${verbs:+, adapters: ${adapters:-none}}"
    say "  MPI:          ${mpi:-not found}"
    for part in $(tr ',' ' ' <<<"${WEFT_REQUIRE:-}"); do
        case $part in
            cuda) [ -n "$nvcc" ] && [ -n "$driver" ] || missing+=("cuda (toolkit and driver)") ;;
            nccl) [ -n "$nccl" ] || missing+=("nccl (libnccl.so.2)") ;;
            verbs) [ -n "$verbs" ] || missing+=("verbs (libibverbs.so.1)") ;;
            mpi) [ -n "$mpi" ] || missing+=("mpi (mpirun)") ;;
            *) die "WEFT_REQUIRE knows cuda, nccl, verbs and mpi, not '$part'" ;;
        esac
    done
    [ ${#missing[@]} = 0 ] || die "WEFT_REQUIRE asks for what was not found: $(printf '%s; ' "${missing[@]}")"
}

# --- building ---

# Configures and builds. What was found is said in plain words; the rest is shown only when something fails.
build() { # build FOLDER CMAKE_OPTION...
    local folder log options=()
    folder=$(make_folder "$1" WEFT_BUILD_DIR) || exit 1
    shift
    log=$folder/build.log
    if command -v ninja >/dev/null && [ ! -f "$folder/CMakeCache.txt" ]; then options+=(-G Ninja); fi
    if command -v ccache >/dev/null; then
        # Objects are shared between build folders: what differs in macros alone preprocesses to the same text.
        export CCACHE_NOHASHDIR=1 CCACHE_BASEDIR=$source_dir
        options+=(-DCMAKE_C_COMPILER_LAUNCHER=ccache)
    fi
    if ! cmake -S "$source_dir" -B "$folder" "${options[@]}" "$@" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        die "cmake failed; all of its output is in $log"
    fi
    sed -n 's/^-- weft: /  /p' "$log"
    if ! cmake --build "$folder" --parallel "$jobs" >>"$log" 2>&1; then
        grep -nE 'error|FAILED|undefined|warning' "$log" | head -n 40 >&2
        die "the build failed; all of its output is in $log"
    fi
}
