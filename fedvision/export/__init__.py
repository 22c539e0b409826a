"""A finished run's model in one file for other programs: ONNX, ``torch.export``, safetensors; and int8."""
