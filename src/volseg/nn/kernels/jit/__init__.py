"""Kernels written in Python and compiled for the processor at hand, with LLVM.

`language.py` is what they are written in, `machine_code.py` compiles them, `code_folder.py` keeps what was compiled,
`compiler.py` turns it into functions, `workers.py` runs them on threads.
Every operation on floats stands in the kernel as it is done: nothing is contracted, reordered or approximated, and a
vector's lanes are channels, which never meet. So a result has the same bits on processors of any vector length.
"""
