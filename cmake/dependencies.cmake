# What Weft links. Each is one line in ARCHITECTURE.md. Optional ones can be switched off and the tests still pass.
find_package(Threads REQUIRED)
set(weft_public_libraries Threads::Threads m ${CMAKE_DL_LIBS})
