# The ranks of these tests are real processes, made as those of the transport's tests.
foreach(source ${room_tests})
  get_filename_component(file ${source} NAME_WE)
  target_sources(learn_${file} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/transport/ranks.c)
endforeach()
