"""Write the explanation of each key from the schema into conf/ and docs/configuration.md.

python scripts/write_reference.py            # rewrites what is stale
python scripts/write_reference.py --check    # changes nothing; status 1 if something is stale
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # because train.py and data/ are not installed

from scripts.conf_comments import conf_files
from train import TABLES

ROOT = Path(__file__).parents[1]


def main() -> None:
    for file in conf_files(ROOT / "conf", TABLES):
        text = file.with_comments()
        if text != file.text:
            file.path.write_text(text)
            print(file.path)


if __name__ == "__main__":
    main()
