# The CUDA device. What needs a GPU skips itself, with a word, where there is none: -L gpu chooses those tests.
foreach(name ${room_tests})
  get_filename_component(file ${name} NAME_WE)
  target_include_directories(cuda_${file} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  set_tests_properties(cuda_${file} PROPERTIES LABELS "cuda;gpu")
endforeach()
