# The CUDA device. What needs a GPU skips itself, with a word, where there is none: -L gpu chooses those tests, and pack.sh makes a folder of
# them that runs on another machine.
target_sources(cuda_test_conformance PRIVATE $<TARGET_OBJECTS:weft_test_device> ${CMAKE_CURRENT_LIST_DIR}/../cuda_host/thrice.c)
target_sources(cuda_test_train PRIVATE ${CMAKE_CURRENT_LIST_DIR}/../train/run.c)
foreach(name ${room_tests})
  get_filename_component(file ${name} NAME_WE)
  target_include_directories(cuda_${file} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  set_tests_properties(cuda_${file} PROPERTIES LABELS "cuda;gpu" TIMEOUT 900)
endforeach()
