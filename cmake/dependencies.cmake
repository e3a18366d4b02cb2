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
