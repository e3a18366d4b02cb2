#!/usr/bin/env bash
# usage: pack.sh BUILD_FOLDER OUT_FOLDER
# Makes a folder that runs the GPU's tests on another machine, which needs no more than a driver and NVIDIA's libraries: test programs,
# samples and benchmarks from the build, the shared libraries that they need beyond the C library's, and run.sh; and OUT_FOLDER.tar.xz, which is
# far smaller, for the programs share their kernels.
set -euo pipefail
build=$(cd "$1" && pwd) out=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
rm -rf "$out"
mkdir -p "$out/bin" "$out/lib"
programs=(cuda_test_open cuda_test_device cuda_test_conformance cuda_test_fp8 cuda_test_train train_program_parity train_program_run train_program_compress weftrun weft-bench
    train_images train_text train_gpt train_recommender)
for program in "${programs[@]}"; do
    if [ -x "$build/bin/$program" ]; then cp "$build/bin/$program" "$out/bin/"; else echo "left out, for it isn't built: $program"; fi
done
for program in "$out"/bin/*; do strip --strip-debug "$program"; done
# Not the C library and its loader, which must be the machine's own.
for program in "$out"/bin/*; do ldd "$program" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p'; done | sort -u |
    grep -vE '/(libc|libm|libdl|libpthread|librt|ld-linux[^/]*)\.so' | while read -r library; do cp -L "$library" "$out/lib/"; done
cp "$here/run.sh" "$out/"
"$here/ops.sh" >"$out/ops.txt"
cp "$here"/../../bench/peers/{gpu,torch_gpu,jax_gpu}.py "$out/" # python3 gpu.py --bin bin gpt2: a line of figures
cp "$here/hosted.sh" "$out/bin/"
tar -C "$(dirname "$out")" -cf - "$(basename "$out")" | xz --lzma2=preset=1,dict=256MiB >"$out.tar.xz"
du -sh "$out" "$out.tar.xz"
