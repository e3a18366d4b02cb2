# Every way to memory is counted, also those that the library's code takes by itself.
if(TARGET plan_test_allocation)
  target_link_options(plan_test_allocation PRIVATE -Wl,--wrap=malloc -Wl,--wrap=calloc -Wl,--wrap=realloc
                      -Wl,--wrap=aligned_alloc -Wl,--wrap=posix_memalign -Wl,--wrap=mmap)
endif()
