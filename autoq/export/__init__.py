"""File formats: ONNX with Q/DQ, OpenVINO IR, QONNX, and the packed package."""
