"Tests never reach for a network, and use few threads so that two of them fit on two cores"

import os

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('MPLBACKEND', 'agg')
os.environ.setdefault('TQDM_DISABLE', '1')
