"""Write the explanation of each key from the schema into conf/ and docs/configuration.md.

    python scripts/write_reference.py            # rewrites what is stale
    python scripts/write_reference.py --check    # changes nothing; status 1 if something is stale

The comment behind a key in conf/ is replaced. Comments on lines of their own stay; they may say why a value was chosen.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # because train.py and data/ are not installed

from eval import TABLES
from scripts.conf_comments import conf_files
from scripts.reference_page import reference
from xcit.command import ArgumentParser, guarded

ROOT = Path(__file__).parents[1]


@guarded
def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if something is stale")
    check = parser.parse_args().check

    files = conf_files(ROOT / "conf", TABLES)
    wanted = {file.path: file.with_comments() for file in files}
    wanted[ROOT / "docs" / "configuration.md"] = reference(files, TABLES)
    stale = {path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if check:
            print(f"{path.relative_to(ROOT)}: stale; run python scripts/write_reference.py", file=sys.stderr)
        else:
            path.write_text(text)
            print(path.relative_to(ROOT))
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
