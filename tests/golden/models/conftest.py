"""The script that makes the golden files needs PyTorch, which is no dependency of the tests: nothing collects it."""

collect_ignore = ["make_models.py"]
