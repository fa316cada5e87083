"""What `import k15core` loads is checked here; what it costs is a claim of bench/."""

import subprocess
import sys


def test_import_loads_neither_numpy_nor_torch() -> None:
    code = (
        "import sys, k15core; dir(k15core); "
        "heavy = {'numpy', 'torch', 'pydantic', 'rich', 'yaml', 'transformers'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_resolves() -> None:
    import k15core

    for name in k15core.__all__:
        assert getattr(k15core, name) is not None
