# Which tests are built where: regular expressions on a test's name, <room>_test_<file>. What is in no list is built in
# every build. A test whose file is named test_<something>_nightly.c has the label nightly, and so runs with
# `scripts/test.sh --nightly` only.

# The thread sanitizer is for what has threads (grep for pthread_, _Atomic and the CPU device's pool: all but the launcher, which has one
# thread, and rooms that only compute); the rest would only cost time.
set(weft_thread_suites "^(base|collective|cpu|device|learn|parallel|plan|server|train|transport|verbs)_|^io_test_timeline$")
# Not for the thread sanitizer: the simulator's ranks are fibers of one thread, which it neither knows nor could find a race between.
# Nor what has one thread, or ranks of one thread each that exchange by what other suites try, and computes for long: splits, meshes, precisions, entries; nor
# what starts many worlds for what servers' own suites try: faults of training by one.
set(weft_fiber_suites "^(simulation_|transport_test_wire_sim$|parallel_test_tensor$|train_test_(tensor|expert|sequence|mesh|zero|precision|served_faults|served_renew|served_split|automatic|planning|parity|compress|convergence|divide)(_nightly)?$|server_test_entries$)")
# Not for the sanitizers: scripts that start other builds, and what measures time or memory.
set(weft_plain_suites "^(lint|install|scripts|samples|bench)_|^train_test_(overlap$|bubble$|compress_images|served_images)|^server_test_(downpour|lbfgs_slow|slices_time)$")
# What compares times, and so runs beside no other test.
set(weft_lone_suites "^(train_test_overlap|train_test_bubble|transport_test_wire_delay|server_test_downpour|server_test_lbfgs_slow|server_test_slices_time)$")

# weft_applies(<out> <test name>): whether this build wants the test.
function(weft_applies out name)
  set(applies TRUE)
  if(WEFT_SANITIZE AND name MATCHES "${weft_plain_suites}")
    set(applies FALSE)
  elseif(WEFT_SANITIZE MATCHES "thread" AND (name MATCHES "${weft_fiber_suites}" OR NOT name MATCHES "${weft_thread_suites}"))
    set(applies FALSE)
  endif()
  set(${out} ${applies} PARENT_SCOPE)
endfunction()
