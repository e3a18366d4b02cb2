# What Weft links. Each is one line in ARCHITECTURE.md. Optional ones can be switched off and the tests still pass.
#
#   weft_public_libraries    what a program that links libweft.a needs with it
#   weft_package_dependencies, weft_pc_libraries, weft_pc_requires   the same for the installed CMake package (lines of
#                            find_dependency) and pkg-config file (link flags; names of .pc files)
#   weft_private_definitions WEFTI_HAVE_… for the library's own sources
#   weft_found               plain words, one line a dependency, for the report at the end of configuring
list(APPEND CMAKE_MODULE_PATH ${PROJECT_SOURCE_DIR}/cmake)
set(weft_private_definitions "")
set(weft_found "")

find_package(Threads REQUIRED)
set(weft_public_libraries Threads::Threads m ${CMAKE_DL_LIBS})
set(weft_package_dependencies "find_dependency(Threads)")
set(weft_pc_libraries -pthread -lm)
foreach(library ${CMAKE_DL_LIBS})
  list(APPEND weft_pc_libraries -l${library})
endforeach()
set(weft_pc_requires "")

# zlib reads gzip data sets. Without it they are refused with a message that says so.
option(WEFT_ZLIB "Read gzip files (needs zlib1g-dev)" ON)
set(ZLIB_FOUND FALSE)
if(WEFT_ZLIB)
  find_package(ZLIB QUIET)
endif()
if(ZLIB_FOUND)
  list(APPEND weft_public_libraries ZLIB::ZLIB)
  string(APPEND weft_package_dependencies "\nfind_dependency(ZLIB)")
  list(APPEND weft_pc_requires zlib)
  list(APPEND weft_private_definitions WEFTI_HAVE_ZLIB)
  list(APPEND weft_found "zlib: ${ZLIB_VERSION_STRING}, gzip data sets are read directly")
else()
  list(APPEND weft_found "zlib: none, gzip files are refused (Debian: zlib1g-dev)")
endif()

# libsodium proves ranks to each other. Without it only loopback is allowed.
option(WEFT_SODIUM "Authenticate ranks with a per-job secret (needs libsodium-dev)" ON)
set(WeftSodium_FOUND FALSE)
if(WEFT_SODIUM)
  find_package(WeftSodium QUIET MODULE)
endif()
if(WeftSodium_FOUND)
  list(APPEND weft_public_libraries weft::sodium)
  string(APPEND weft_package_dependencies "\nfind_dependency(WeftSodium MODULE)")
  list(APPEND weft_pc_requires libsodium)
  list(APPEND weft_private_definitions WEFTI_HAVE_SODIUM)
  list(APPEND weft_found "libsodium: ${WeftSodium_LIBRARY}, ranks prove themselves by a secret")
else()
  list(APPEND weft_found "libsodium: none, ranks meet over loopback only (Debian: libsodium-dev)")
endif()

# libibverbs carries the verbs wire. Only its headers are needed here: it is loaded at run time where there is one.
option(WEFT_VERBS "Build the RDMA verbs wire (needs libibverbs-dev)" ON)
set(WEFT_HAVE_VERBS FALSE)
if(WEFT_VERBS)
  find_path(WEFT_VERBS_INCLUDE_DIR NAMES infiniband/verbs.h)
  mark_as_advanced(WEFT_VERBS_INCLUDE_DIR)
  if(WEFT_VERBS_INCLUDE_DIR)
    set(WEFT_HAVE_VERBS TRUE)
  endif()
endif()
if(WEFT_HAVE_VERBS)
  list(APPEND weft_private_definitions WEFTI_HAVE_VERBS)
  list(APPEND weft_found "libibverbs: ${WEFT_VERBS_INCLUDE_DIR}, RDMA where a machine has it (loaded at run time)")
else()
  list(APPEND weft_found "libibverbs: no headers, so there is no verbs wire (Debian: libibverbs-dev)")
endif()
