"""Packages live in four source roots, so that none of them is called like somebody else's import."""

from setuptools import find_packages, setup

ROOTS = {
    "showo_dist": ".",
    "showo_kernels": "kernels",
    "showo_data": "data_pipelines",
    "showo_launch": "launchers",
}

packages: list[str] = []
package_dir: dict[str, str] = {}
for name, root in ROOTS.items():
    packages += find_packages(root, include=[name, f"{name}.*"])
    package_dir[name] = name if root == "." else f"{root}/{name}"

setup(packages=packages, package_dir=package_dir)
