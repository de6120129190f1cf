//! What `gasthaus check` says of mistakes in recipes, word by word.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

const HEAD: &str = "name = \"my\"\ntitle = \"My\"\n";
const HINT: &str =
    "hint: every key is explained in `builder/docs/recipe.md` and by `gasthaus schema`\n";
const TOP_KEYS: &str = "`debian`, `dom0`, `flavours`, `guests`, `layers`, `name`, `outputs`, `page`, `stream`, `timeout-secs`, `title`, `xen`";

/// Exit code, stdout and stderr of `gasthaus check`.
fn check(dir: &Path, recipe: &str) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_gasthaus"))
        .args(["check", recipe])
        .current_dir(dir)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Checks a recipe of this text; gives what is said of it, without the first and last line and the file's name.
fn problems_of(text: &str) -> Vec<String> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("my.toml"), text).unwrap();
    let (code, stdout, stderr) = check(dir.path(), "my.toml");
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
    let problems: Vec<String> = stderr
        .lines()
        .filter_map(|line| line.strip_prefix("  my.toml:"))
        .map(str::to_owned)
        .collect();
    let count = if problems.len() == 1 {
        "a problem".into()
    } else {
        format!("{} problems", problems.len())
    };
    let body: String = problems
        .iter()
        .map(|problem| format!("  my.toml:{problem}\n"))
        .collect();
    assert_eq!(
        stderr,
        format!("error: the recipe `my.toml` has {count}\n{body}{HINT}")
    );
    problems
}

/// Mistakes in `text`, which follows [`HEAD`], so that its first line is line 3.
fn told(text: &str, expected: &[&str]) {
    assert_eq!(problems_of(&format!("{HEAD}{text}\n")), expected, "{text}");
}

#[test]
fn unknown_keys() {
    let unknown = |key: &str| format!("`{key}` is not a key of a recipe; allowed here: {TOP_KEYS}");
    told(
        "flavors = [\"xen\"]",
        &[&format!(
            "3:1: {}; did you mean `flavours`?",
            unknown("flavors")
        )],
    );
    told(
        "[stream]\nurl = \"x\"",
        &[
            "4:1: `stream.url` is not a key of a recipe; allowed here: `compression-level`, `profile`, `profiles`, `public-keys`, `secret-key`, `urls`; did you mean `urls`?",
        ],
    );
    told(
        "[streams]\nurl = \"x\"",
        &[&format!(
            "3:2: {}; did you mean `stream`?",
            unknown("streams")
        )],
    );
    told(
        "\"a\\u001bb\" = 1",
        &[&format!("3:1: {}", unknown("a\\u{1b}b"))],
    );
    told(
        "[dom0]\nhostnam = \"x\"",
        &[
            "4:1: `dom0.hostnam` is not a key of a recipe; allowed here: `exclude-packages`, `hostname`, \
           `kernel-options`, `keymap`, `locale`, `overlays`, `packages`, `user`; did you mean `hostname`?",
        ],
    );
    told(
        "[xen]\nopts = 1",
        &[
            "4:1: `xen.opts` is not a key of a recipe; allowed here: `options`; did you mean `options`?",
        ],
    );
}

#[test]
fn numbers() {
    let allowed = "allowed: an integer from 0 to 3600";
    told(
        "timeout-secs = \"5\"",
        &[&format!(
            "3:16: `timeout-secs` is the string `5`; {allowed}"
        )],
    );
    told(
        "timeout-secs = 4_000",
        &[&format!("3:16: `timeout-secs` is `4000`; {allowed}")],
    );
    told(
        "timeout-secs = -1",
        &[&format!("3:16: `timeout-secs` is `-1`; {allowed}")],
    );
    told(
        "timeout-secs = 1.5",
        &[&format!(
            "3:16: `timeout-secs` is the float `1.5`; {allowed}"
        )],
    );
    told(
        "[layers]\ncompression-level = 0\nrelease-level = true",
        &[
            "4:21: `layers.compression-level` is `0`; allowed: an integer from 1 to 22",
            "5:17: `layers.release-level` is the boolean `true`; allowed: an integer from 1 to 22",
        ],
    );
}

#[test]
fn words_and_lists() {
    let plain =
        "3:20: `flavours[1]` is `plane`; allowed: `xen`, `kvm`, `plain`; did you mean `plain`?";
    told("flavours = [\"xen\", \"plane\"]", &[plain]);
    told(
        "flavours = [\"xen\", \"plane\", \"xen\", 3]",
        &[
            plain,
            "3:29: `flavours[2]` is `xen` once more; allowed: each only once",
            "3:36: `flavours[3]` is the integer `3`; allowed: `xen`, `kvm`, `plain`",
        ],
    );
    told(
        "flavours = []",
        &["3:12: `flavours` is an empty list; allowed: at least one"],
    );
    told(
        "outputs = \"iso\"",
        &["3:11: `outputs` is the string `iso`; allowed: a list of strings"],
    );
    told(
        "guests = [\"tiny\", \"tiny\"]",
        &["3:19: `guests[1]` is `tiny` once more; allowed: each only once"],
    );
    told(
        "guests = [\"A b\"]",
        &[
            "3:11: `guests[0]` is `A b`; allowed: a name (`a`-`z`, `0`-`9` and `-`, at most 40 characters), or a path (with a `/`)",
        ],
    );
    told(
        "[debian]\nsuite = \"bookworm\"",
        &["4:9: `debian.suite` is `bookworm`; allowed: `trixie`"],
    );
    told(
        "[debian]\ncomponents = [\"non-fre\"]",
        &[
            "4:15: `debian.components[0]` is `non-fre`; allowed: `main`, `contrib`, `non-free`, `non-free-firmware`; \
           did you mean `non-free`?",
        ],
    );
}

#[test]
fn dom0_and_options() {
    let option = "allowed: one word of letters, digits and `_.,:=/@%+-`, at most 256 characters";
    told(
        "dom0 = 5",
        &["3:8: `dom0` is the integer `5`; allowed: a table, `[dom0]`"],
    );
    told(
        "[dom0]\nhostname = \"a.b\"\nlocale = \"deutsch\"",
        &[
            "4:12: `dom0.hostname` is `a.b`; allowed: one DNS label: `a`-`z`, `0`-`9` and `-` inside, at most 63 characters",
            "5:10: `dom0.locale` is `deutsch`; allowed: a UTF-8 locale such as `C.UTF-8` or `de_DE.UTF-8`",
        ],
    );
    told(
        "[dom0]\npackages = [\"vim\", 7, \"Vim\"]\nexclude-packages = [\"vim\"]",
        &[
            "4:20: `dom0.packages[1]` is the integer `7`; allowed: a string",
            "4:23: `dom0.packages[2]` is `Vim`; allowed: a Debian package name: `a`-`z`, `0`-`9`, `+`, `-` and `.`, at least 2 characters",
            "5:21: `dom0.exclude-packages[0]` is `vim`; allowed: a package that `dom0.packages` does not ask for",
        ],
    );
    told(
        "[dom0]\nkernel-options = [\"a b\", \"x\\u001by\", \"root=/dev/sda\"]",
        &[
            &format!("4:19: `dom0.kernel-options[0]` is `a b`; {option}"),
            &format!("4:26: `dom0.kernel-options[1]` is `x\\u{{1b}}y`; {option}"),
            "4:38: `dom0.kernel-options[2]` is `root=/dev/sda`; allowed: anything but `gasthaus.build=` and `root=`, which the builder sets",
        ],
    );
    told(
        "[page]\nenabled = 1\nport = 0\ntoken-sha256 = \"open sesame\"",
        &[
            "4:11: `page.enabled` is the integer `1`; allowed: `true` or `false`",
            "5:8: `page.port` is `0`; allowed: an integer from 1 to 65535",
            "6:16: `page.token-sha256` is no SHA-256; allowed: 64 hexadecimal digits in lower case, as `sha256sum` prints them",
        ],
    );
    told(
        "[page]\nport = 22",
        &[
            "4:8: `page.port` is `22`; allowed: a port from 1 to 65535, and not 22, which is for SSH",
        ],
    );
    told(
        "[xen]\noptions = [\"a;reboot\"]",
        &[&format!("4:12: `xen.options[0]` is `a;reboot`; {option}")],
    );
    told(
        "[debian]\nmirror = \"ftp://x\"",
        &[
            "4:10: `debian.mirror` is `ftp://x`; allowed: `http://…` or `https://…` without blanks and without credentials",
        ],
    );
}

#[test]
fn users() {
    let user = |text: &str, expected: &[&str]| told(&format!("[dom0.user]\n{text}"), expected);
    let key = "allowed: a public key line as in `~/.ssh/id_ed25519.pub`";
    user(
        "password = \"x\"",
        &["3:1: `dom0.user.name` is missing; expected the login name"],
    );
    user(
        "name = \"root\"\npassword = \"\"",
        &[
            "4:8: `dom0.user.name` is `root`; allowed: a name that Debian does not use itself",
            "5:12: `dom0.user.password` is empty; allowed: 1 to 128 bytes on one line",
        ],
    );
    user(
        "name = \"jo\"",
        &[
            "3:1: `dom0.user` is without a way to log in; allowed: a user with `password`, `password-hash` or `ssh-keys`",
        ],
    );
    user(
        "name = \"jo\"\npassword = \"x\"\npassword-hash = \"$6$abcdefgh$x\"",
        &["6:17: `dom0.user.password-hash` is given beside `password`; allowed: one of the two"],
    );
    user(
        "name = \"jo\"\npassword-hash = \"secret\"",
        &[
            "5:17: `dom0.user.password-hash` is not a hash; allowed: a crypt(5) hash as in `/etc/shadow`, e.g. `$6$…` or `$y$…` (`mkpasswd` makes one)",
        ],
    );
    user(
        "name = \"jo\"\nssh-keys = [\"hello\", \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAA\"]",
        &[
            &format!(
                "5:13: `dom0.user.ssh-keys[0]` is `hello` (it does not start with a key type such as `ssh-ed25519`); {key}"
            ),
            &format!(
                "5:22: `dom0.user.ssh-keys[1]` is `ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAA` (it is cut short); {key}"
            ),
        ],
    );
    user(
        "name = \"jo\"\nssh-keys = [\"-----BEGIN OPENSSH PRIVATE KEY-----\"]",
        &[&format!(
            "5:13: `dom0.user.ssh-keys[0]` is `-----BEGIN OPENSSH PRIVATE KEY-----` (this is a PRIVATE key: it must not leave your machine); {key}"
        )],
    );
}

#[test]
fn all_mistakes_of_a_file_in_the_order_of_their_places() {
    let told = problems_of(
        "nam = \"x\"\ntitle = \"é\" # fine\nflavours = [\"é\", \"uml\"]\n[xen]\nopts = 1\n",
    );
    let expected = [
        "1:1: `name` is missing; expected the name of the image, e.g. `demo`".to_owned(),
        format!("1:1: `nam` is not a key of a recipe; allowed here: {TOP_KEYS}; did you mean `name`?"),
        "3:13: `flavours[0]` is `é`; allowed: `xen`, `kvm`, `plain`".into(),
        "3:18: `flavours[1]` is `uml`; allowed: `xen`, `kvm`, `plain`".into(),
        "5:1: `xen.opts` is not a key of a recipe; allowed here: `options`; did you mean `options`?".into(),
    ];
    assert_eq!(told, expected);
}

#[test]
fn syntax_errors_together_without_their_consequences() {
    let told =
        problems_of("name = \"x\ntitle = 5 5\n[dom0\nhostname = \"ok\"\nname = \"y\"\nlayer = 2\n")
            .join("\n");
    for place in [
        "1:10: not valid TOML: ",
        "2:9: not valid TOML: ",
        "3:6: not valid TOML: ",
    ] {
        assert!(told.contains(place), "{place} is not in\n{told}");
    }
    assert!(!told.contains("is missing"), "{told}");
    assert_eq!(
        problems_of(&format!("{HEAD}title = \"b\"\n")),
        ["3:1: not valid TOML: duplicate key"]
    );
}

#[test]
fn files_that_are_not_there_or_no_text() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("latin1.toml"), b"title = \xfc").unwrap();
    fs::write(dir.path().join("big.toml"), " ".repeat(2_000_000)).unwrap();
    let cases = [
        (
            "nope",
            "error: there is no recipe `nope`: embedded are `classroom`, `demo`, `minimal`, `zoo`, and no such file exists\n\
             hint: `gasthaus init NAME` writes a commented recipe to start from\n"
                .to_owned(),
        ),
        ("nope.toml", "error: cannot read the recipe `nope.toml`\n  No such file or directory (os error 2)\n".into()),
        ("./", "error: cannot read the recipe `./`\n  Is a directory (os error 21)\n".into()),
        ("latin1.toml", "error: the recipe `latin1.toml` is not UTF-8 text (byte 8)\n".into()),
        (
            "big.toml",
            format!("error: the recipe `big.toml` has a problem\n  big.toml: 1048577 bytes; allowed: at most 1048576 bytes\n{HINT}"),
        ),
    ];
    for (recipe, expected) in cases {
        let (code, stdout, stderr) = check(dir.path(), recipe);
        assert_eq!(
            (code, stdout.as_str(), stderr),
            (Some(1), "", expected),
            "{recipe}"
        );
    }
}

#[test]
fn a_good_recipe_is_named_with_its_digest() {
    let (code, stdout, stderr) = check(Path::new("."), "minimal");
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(
        stdout.starts_with("minimal: ok, image `minimal`, digest "),
        "{stdout}"
    );
}
