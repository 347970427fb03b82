"""The native kernels: one module of the stable ABI; optional, so that the install goes on without a compiler."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "swarm_peer.kernels._native",
            ["kernels/native/native.cpp"],
            depends=[f"kernels/native/{name}.h" for name in ("lanes", "pool", "crc32")],
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
