#!/usr/bin/env bash
# Names of the operations that devices compute, one a line: those of ops.def but what ranks do together.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
sed -n 's/^WEFTI_OP([A-Z0-9_]*, *\([a-z0-9_]*\), *\([A-Z]*\),.*/\2 \1/p' "$here/../../include/weft/ops.def" | grep -v '^COMM ' | cut -d' ' -f2
