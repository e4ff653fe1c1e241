"""Protections whose absence some test must see: each is taken out, and the tests named beside it must fall.

The first group is what once could be removed with every test still passing.
"""

from dataclasses import dataclass

RUNTIME, EXPORTERS, ROOF = "xlstm_edge_runtime", "xlstm_edge_exporters", "xlstm_edge"
Edit = tuple[str, str, str]


@dataclass(frozen=True)
class Removal:
    """(module, what stands there, what is put in its place), and the tests that hold it."""

    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


def out(module: str, old: str, new: str, *tests: str) -> Removal:
    """One edit."""
    return Removal(((module, old, new),), tuple(f"tests/{test}" for test in tests))


R, E = RUNTIME, EXPORTERS
REMOVALS: dict[str, Removal] = {
    # Text
    "special tokens not written": out(f"{E}.bundle", "special_tokens=text.special,", "special_tokens=type(text.special)(),", "test_export_text.py"),
    "bos not written": out(f"{E}.special", "bos=bos[0] if bos else None", "bos=None", "test_export_text.py"),
    "pad not written": out(f"{E}.special", "pad=pad[0] if pad else None", "pad=None", "test_export_text.py"),
    "add_bos not written": out(f"{E}.special", "add_bos=add_bos and bool(bos)", "add_bos=False", "test_export_text.py"),
    "stop ids not written": out(f"{E}.special", "stop=tuple(eos)", "stop=()", "test_export_text.py"),
    "one eos of several": out(f"{E}.special", "stop=tuple(eos)", "stop=tuple(eos[:1])", "test_export_text.py"),
    "sampling defaults not written": out(f"{E}.bundle", "        sampling=text.sampling,\n", "", "test_export_text.py"),
    "tokenizer not written": out(f"{E}.bundle", "        tokenizer=text.info,\n", "        tokenizer=type(text.info)(kind='none'),\n", "test_export_text.py"),
    "stop ids not read": out(f"{R}.contract", 'stop=reader.integers("stop", MOST_STOPS, 0, last),', "stop=(),", "test_export_text.py"),
    "bos not read": out(f"{R}.contract", 'bos=None if reader.is_null("bos") else reader.integer("bos", 0, last),', "bos=None,", "test_export_text.py"),
    "pad not read": out(f"{R}.contract", 'pad=None if reader.is_null("pad") else reader.integer("pad", 0, last),', "pad=None,", "test_export_text.py"),
    "add_bos not read": out(f"{R}.contract", 'add_bos=reader.flag("add_bos"),', "add_bos=False,", "test_export_text.py"),
    "sampling defaults not read": out(f"{R}.contract", "    return dict(reader.value)\n", "    return {}\n", "test_export_text.py"),
    "sampling defaults not used": out(f"{R}.model", "defaults=self.manifest.sampling", "defaults={}", "test_export_text.py", "test_generate.py"),
    "stop ids not used": out(f"{R}.model", "eos_ids=special.stop", "eos_ids=()", "test_export_text.py", "test_generate.py"),
    "special stop strings do not stop": out(f"{R}.text", "options = replace(options, stop_ids=options.stop_ids | tokens)", "pass", "test_text.py"),
    "outputs are views": out(f"{R}.session", "        return output.copy()\n", "        return output\n", "test_generate.py", "test_session.py"),
    "steps are views": Removal(((f"{R}.session", "return self._run(token, 1).copy()", "return self._run(token, 1)"),), ("tests/test_generate.py", "tests/test_session.py")),
    # In place and tuning
    "in place without a proof": out(f"{R}.alias", "return candidates if same else frozenset()", "return candidates", "test_proof.py"),
    "sLSTM states in place": out(f"{R}.alias", "return frozenset(name for name in names if f\"{name.rpartition('.')[0]}.y\" not in names)", "return frozenset(names)", "test_proof.py", "test_parity.py"),
    "never in place": out(f"{R}.alias", "return candidates if same else frozenset()", "return frozenset()", "test_proof.py"),
    "a proof believed for other threads": out(f"{R}.opening", "settings.threads in (None, tuning.threads) and ", "", "test_proof.py"),
    "a tuning of another machine": out(f"{R}.tuning", "tuning.key == key_of(manifest) and sizes and hashes", "sizes and hashes", "test_tune.py"),
    "tuned files not hashed": out(f"{R}.tuning", "and sizes and hashes else", "and sizes else", "test_tune.py"),
    "tuned files not sized": out(f"{R}.tuning", "and sizes and hashes else", "and hashes else", "test_tune.py"),
    "a tuned graph not proven": out(f"{R}.tune", "if same else None", "if True else None", "test_tune.py"),
    "tuned files not hashed by verify": out(f"{R}.tuning", " and file_entry(folder / FOLDER / name) == entry\n", "\n", "test_tune.py", "test_robustness.py"),
    "the tuned graph not compared by verify": out(f"{R}.verify", "if not same_bits(came, sample(plain)):", "if False:", "test_tune.py"),
    "a tuning that fails to load stops load": out(f"{R}.opening", "        except BundleError:  # a damaged tuning must not make a healthy bundle unusable\n            pass\n", "        except ZeroDivisionError:\n            pass\n", "test_robustness.py", "test_tune.py"),
    "foreign files in tuned/ removed": out(f"{R}.tune", "if foreign := sorted(path.name for path in folder.iterdir() if path.name not in {RECORD, *FILES}):", "if foreign := []:", "test_tune.py"),
    # Proof
    "hashes not checked by verify": out(f"{R}.verify", "        check_hash(folder, name, entry)\n", "        pass\n", "test_bad_bundles.py"),
    "small files not hashed at load": out(f"{R}.model", "            check_hash(folder, name, entry)\n", "            pass\n", "test_bad_bundles.py"),
    "outputs not compared": out(f"{R}.verify", "if not difference <= allowed:", "if difference > 1e9:", "test_proof.py"),
    "stored weights not run": out(f"{R}.verify", "    yield from verify_stored(folder, manifest, settings, vectors)\n", "", "test_proof.py"),
    "the range of rounded outputs not held": out(f"{R}.verify", "if not expected.span / RANGES <= span <= expected.span * RANGES:", "if False:", "test_proof.py"),
    "snapshots not tried by verify": out(f"{R}.verify", "if not np.array_equal(session.prefill(last).copy(), other.prefill(last)):", "if False:", "test_proof.py"),
    "a long chunk not run whole": out(f"{R}.verify", "        if not worst <= allowed:\n", "        if False:\n", "test_proof.py"),
    "the allowance not clipped": out(f"{R}.vectors", "return min(max(FLOAT_FACTOR * self.float_error, LEAST_FLOAT), MOST_FLOAT)", "return max(FLOAT_FACTOR * self.float_error, LEAST_FLOAT)", "test_proof.py"),
    "sums not compared": out(f"{R}.vectors", "np.concatenate([came[self.ids] - self.values, output_sums(came) - self.sums])", "came[self.ids] - self.values", "test_proof.py"),
    "positions of checks free": out(f"{R}.vectors", "if tuple(e.position for e in expected) != wanted or length != wanted[-1] + 1:", "if not expected:", "test_proof.py"),
    "files of the graph not listed": out(f"{R}.graph_file", "if unlisted := sorted(name for name in names if name not in files):", "if unlisted := []:", "test_proof.py"),
    "external data hidden in a node": out(f"{R}.graph_file", "    if data.count(WORD) != found:\n        raise ValueError(\"external data in a place of its own\")\n", "", "test_proof.py"),
    "the graph's window not held": out(f"{R}.graph_file", "if windows and min(windows) - 1 < chunk:", "if False:", "test_proof.py"),
    "state shapes of the graph not held": out(f"{R}.opening", "if shapes[row.input_name] != row.shape:", "if False:", "test_bad_bundles.py", "test_robustness.py"),
    "the width of outputs not held": out(f"{R}.opening", "if result.shape[-1] != width:", "if False:", "test_bad_bundles.py", "test_robustness.py"),
    "extra graph inputs allowed": out(f"{R}.opening", "if extra := [name for name in came if name not in wanted]:", "if extra := []:", "test_bad_bundles.py", "test_graph.py", "test_proof.py"),
    "the oldest onnxruntime not asked": out(f"{R}.model", "if numbers(ort.__version__) < numbers(manifest.onnxruntime):", "if False:", "test_bad_bundles.py"),
    "--against does not compare sections": out(f"{E}.verify", "if wanted[section] != came[section]:", "if False:", "test_proof.py"),
    "--against does not compare the tokenizer": out(f"{E}.verify", "if text.file is not None and file_entry(text.file) != manifest.files[text.info.file or \"\"]:", "if False:", "test_proof.py"),
    "--against does not judge quantized weights": out(f"{E}.verify", "            judge.take(name, original, came, schemes[name])\n", "            pass\n", "test_proof.py"),
    "2 bits in any groups": out(f"{E}.quantize.scheme", "if self.bits == min(BITS) and self.group not in GROUPS_OF_2_BITS:", "if False:", "test_quantize.py"),
    # Files
    "leftovers of the living removed": out(f"{R}.files", "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", "test_files.py"),
    "leftovers stay": out(f"{R}.files", "            _remove_if_dead(folder / name)\n", "            pass\n", "test_files.py"),
    "a new folder replaces": out(f"{R}.files", "NO_REPLACE: 1, EXCHANGE: 2}[rule]", "NO_REPLACE: 0, EXCHANGE: 2}[rule]", "test_files.py"),
    "the fallback replaces": out(f"{R}.files", "        if target.exists() or target.is_symlink():\n            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error\n", "", "test_files.py"),
    "a changed folder replaced": out(f"{R}.files", "if _identity(partial) != before:", "if False:", "test_files.py"),
    "no second check of what is replaced": out(f"{R}.files", "                check(partial)\n", "                pass\n", "test_files.py"),
    "no first check of what is replaced": out(f"{R}.files", "        check(target)\n", "        pass\n", "test_tune.py", "test_files.py"),
    "no rollback": out(f"{R}.files", "        except BaseException:\n            _swap(partial, target)\n            raise\n", "        finally:\n            pass\n", "test_files.py"),
    "devices replaced": out(f"{R}.files", "        if not stat.S_ISREG(mode):\n            raise OSError", "        if False:\n            raise OSError", "test_snapshot.py"),
    "links replaced by snapshots": out(f"{R}.files", "Path(os.path.realpath(path))", "Path(path)", "test_snapshot.py"),
    "partial names of the process alone": out(f"{R}.files", "secrets.token_hex(8)", "f'{os.getpid():016x}'", "test_snapshot.py"),
    "links out of the folder followed": out(f"{R}.manifest", "            raise OSError(\"a link out of the folder\")\n", "            pass\n", "test_files.py", "test_bad_bundles.py"),
    "no links at all": out(f"{R}.manifest", "if path.resolve().parent != snapshot.parent.parent / \"blobs\" or snapshot.parent.name != \"snapshots\":", "if True:", "test_files.py"),
    "a tuned folder behind a link": out(f"{R}.tuning", "    if folder.is_symlink():\n        raise OSError(\"a link\")\n", "", "test_tune.py"),
    # Untrusted input
    "pipes block": out(f"{R}.reading", "os.open(path, os.O_RDONLY | NOT_BLOCKING)", "os.open(path, os.O_RDONLY)", "test_files.py"),
    "devices read": out(f"{R}.reading", "    if not stat.S_ISREG(os.fstat(descriptor).st_mode):\n", "    if False:\n", "test_malformed.py", "test_snapshot.py"),
    "documents of any size": out(f"{R}.reading", "    if len(content) > most:\n", "    if False:\n", "test_malformed.py", "test_tune.py"),
    "unknown keys": out(f"{R}.reading", "if unknown := [key for key in value if key not in keys and key not in optional]:", "if unknown := []:", "test_malformed.py"),
    "keys twice": out(f"{R}.reading", "object_pairs_hook=_distinct, ", "", "test_malformed.py"),
    "NaN in JSON": out(f"{R}.reading", ", parse_constant=_no_constant", "", "test_malformed.py"),
    "true as a number": out(f"{R}.reading", "if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:", "if not isinstance(value, int) or not low <= value <= high:", "test_malformed.py", "test_tune.py"),
    "lists of any length": out(f"{R}.reading", "if not isinstance(values, list) or len(values) > most:", "if not isinstance(values, list):", "test_malformed.py"),
    "a state of any size": out(f"{R}.manifest", "if manifest.state.nbytes > max(SMALL_STATE, STATE_PER_BYTE * total):", "if False:", "test_malformed.py"),
    "file names of any kind": out(f"{R}.contract", "if not re.fullmatch(FILE_NAME, name) or name == MANIFEST:", "if name == MANIFEST:", "test_malformed.py"),
    "foreign text in errors": out(f"{R}.errors", "        text = printable(message)\n", "        text = message\n", "test_malformed.py", "test_terminal.py::test_foreign_text_cannot_steer_the_terminal"),
    "endless errors": out(f"{R}.errors", "super().__init__(text if len(text) <= LONGEST_MESSAGE else f\"{text[:LONGEST_MESSAGE]}...\")", "super().__init__(text)", "test_malformed.py", "test_terminal.py::test_values_in_messages_are_short_and_escaped"),
    "containers shown": out(f"{R}.errors", "    return f\"a {type(value).__name__}\"\n", "    return repr(value)\n", "test_terminal.py::test_values_in_messages_are_short_and_escaped", "test_malformed.py"),
    "a snapshot's size not compared": out(f"{R}.snapshot", "            if (came := os.fstat(file.fileno()).st_size - begin) != size:\n", "            if (came := 0) != 0:\n", "test_snapshot.py"),
    "a snapshot's source not compared": out(f"{R}.snapshot", "if metadata.text(\"source\") != source:", "if False:", "test_snapshot.py"),
    "gaps in snapshots": out(f"{R}.snapshot", "        if places[row.name] != end:\n", "        if False:\n", "test_snapshot.py"),
    "NaN in snapshots": out(f"{R}.snapshot", "    if not all(np.isfinite(array).all() for array in state.values()):\n", "    if False:\n", "test_snapshot.py"),
    "headers of any length": out(f"{R}.snapshot", "if not 2 <= length <= LARGEST_HEADER or length > os.fstat(file.fileno()).st_size - 8:", "if length < 2:", "test_snapshot.py"),
    "NaN in vectors": out(f"{R}.model", "        if not np.isfinite(vectors).all():\n", "        if False:\n", "test_session.py"),
    "negative ids": out(f"{R}.model", "if ids.min() < 0 or ids.max() >= vocab_size:", "if ids.max() >= vocab_size:", "test_session.py"),
    # Command line
    "no instant end": out(f"{ROOF}.terminal", "    before = signal.signal(signal.SIGINT, leave_at_once)\n", "    before = signal.getsignal(signal.SIGINT)\n", "test_terminal.py"),
    "faults exit 1": out(f"{ROOF}.terminal", "BAD_INPUT, FAULT, INTERRUPTED = 1, 2, 70, 130", "BAD_INPUT, FAULT, INTERRUPTED = 1, 2, 1, 130", "test_terminal.py::test_a_fault_of_ours_is_70_and_says_how_to_report"),
    "generated text steers the terminal": out(f"{ROOF}.terminal", "    if sys.stdout.isatty():\n        text =", "    if False:\n        text =", "test_terminal.py::test_generated_text_cannot_either_where_a_person_looks"),
    "tables read markup": out(f"{ROOF}.terminal", "return Text(\"\\n\".join(printable(line) for line in str(text).split(\"\\n\")))", "return str(text)", "test_terminal.py::test_foreign_text_cannot_steer_the_terminal"),
    "the roofline's bytes": out(f"{ROOF}.bandwidth", "        weights -= (vocab - 1) * row\n", "", "test_cli.py"),
    "the roofline's state": out(f"{ROOF}.bandwidth", "2 * manifest.state.nbytes", "0", "test_cli.py"),
    "the roofline's share": out(f"{ROOF}.bench", "rate * needed / bandwidth", "rate / bandwidth", "test_cli.py"),
    "the roofline's unit": out(f"{ROOF}.bandwidth", "rates.append(self._bytes / (time.perf_counter() - begin))", "rates.append(len(self._parts) / (time.perf_counter() - begin))", "test_cli.py"),
    # Checkpoints
    "weights of NaN": out(f"{E}.bundle", "    if not np.isfinite(array).all():\n", "    if False:\n", "test_bad_checkpoints.py"),
    "links out of a checkpoint": out(f"{E}.checkpoints.files", "if not any(real.is_relative_to(h) for h in homes):", "if False:", "test_checkpoints.py"),
    # Cells
    "gates not capped": out(f"{E}.model", "gates = spec.gate_soft_cap * torch.tanh(gates)", "gates = spec.gate_soft_cap * gates", "test_robustness.py"),
}  # fmt: skip
