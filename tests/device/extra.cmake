# Some fifteen thousand cases on several devices: about ten seconds of a free core.
set_tests_properties(device_test_cpu PROPERTIES TIMEOUT 400)
