"Requirements and metadata live in settings.ini, which nbdev reads too; this hands them to pip."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='], interpolation=None)
config.read(here / 'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
extras = {
    key.removesuffix('_requirements'): cfg[key].split()
    for key in cfg
    if key.endswith('_requirements')
}

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    author=cfg['author'],
    keywords=cfg['keywords'],
    packages=find_packages(include=['fmhar', 'fmhar.*']),
    package_data={'fmhar.explore': ['*.js', '*.css']},
    python_requires=f'>={cfg["min_python"]}',
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={
        'console_scripts': ['fmhar=fmhar.cli:main'],
        'nbdev': ['fmhar=fmhar._modidx:d'],
    },
    zip_safe=False,
)
