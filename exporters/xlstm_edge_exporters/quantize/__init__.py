"""Weight quantization: 2, 4 or 8 bits in blocks of weights along the input features, everything else untouched.

scheme      blocks of integers and their scales: round to nearest, search the scale, pack, unpack
plan        which tensor gets which scheme, from options
rewrite     graph pass: MatMul -> MatMulNBits, Gather -> GatherBlockQuantized
gptq        integers that compensate each other's error, from the statistics of a calibration text
calibrate   those statistics, block by block
budget      bits spent where they buy most, within a number of bytes
"""
