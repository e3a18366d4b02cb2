# Compiler flags shared by the library, its tests and its samples.
# -ffp-contract=off: fused multiply-adds only where written, so that fusing or cutting a graph never changes rounding.
add_library(weft_flags INTERFACE)
target_compile_options(weft_flags INTERFACE -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes
                       -Wpointer-arith -Wwrite-strings -Wvla -fno-math-errno -ffp-contract=off -fno-strict-aliasing)
# Messages are cut at a fixed length on purpose.
target_compile_options(weft_flags INTERFACE $<$<C_COMPILER_ID:GNU>:-Wno-format-truncation>)
if(WEFT_WERROR)
  target_compile_options(weft_flags INTERFACE -Werror)
endif()
if(WEFT_SANITIZE)
  # Everything of the tree, tests too: a half-instrumented program reports nonsense.
  add_compile_options(-fsanitize=${WEFT_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${WEFT_SANITIZE})
endif()
string(APPEND CMAKE_C_FLAGS_RELEASE " -O2 -g1")
string(REPLACE "-O3" "" CMAKE_C_FLAGS_RELEASE "${CMAKE_C_FLAGS_RELEASE}")
string(REPLACE "-DNDEBUG" "" CMAKE_C_FLAGS_RELEASE "${CMAKE_C_FLAGS_RELEASE}")
if(WEFT_SANITIZE) # instrumented code takes long to optimise, and gains little by it
  string(REPLACE "-O2" "-O1" CMAKE_C_FLAGS_RELEASE "${CMAKE_C_FLAGS_RELEASE}")
endif()
