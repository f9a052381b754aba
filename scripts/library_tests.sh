# Sourced by the scripts that test with other libraries: sets `library_tests` to the tests that need such a library. They are skipped in .venv.
library_tests=(
  tests/zoo
  tests/models/test_lightning.py
  tests/models/test_libraries.py
  tests/optim/test_layers.py::test_the_layers_of_timm_are_the_same
  tests/schedules/test_libraries.py
  tests/reinforcement
  "tests/app/test_groups.py::test_experiments[cartpole_dqn]"
  tests/app/test_whole_commands.py
  tests/data/test_hf.py
  tests/data/test_image_folder.py::test_transforms_of_torchvision
  tests/metrics/test_selection.py::test_graphs_train
  tests/runner/test_switching.py
  tests/runner/test_weights.py::test_files_of_safetensors_and_folders_of_hugging_face
  tests/cli/test_export.py
  tests/track/test_copies.py
)
