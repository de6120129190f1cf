//! The recipe's public face: the committed JSON schema, the embedded recipes, digests and passwords.

use std::collections::BTreeSet;
use std::fmt::Write;

use gasthaus::recipe::{Fault, MAX_RECIPE_BYTES, Names, Recipe, Reference, parse};
use gasthaus::recipe_file::{embedded_names, embedded_text};
use serde_json::{Value, json};

const SCHEMA: &str = include_str!("../recipe.schema.json");

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

fn demo() -> Recipe {
    parse("demo", &embedded_text("demo").unwrap(), None).unwrap()
}

#[test]
fn the_committed_schema_is_the_codes() {
    assert!(
        SCHEMA == Recipe::json_schema(),
        "renew it: `cargo run -p gasthaus -- schema > builder/recipe.schema.json`"
    );
}

#[test]
fn every_embedded_recipe_parses_and_validates_against_the_schema() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let holds = |name: &str, value: &Value| {
        let errors: Vec<_> = validator
            .iter_errors(value)
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    };
    assert_eq!(embedded_names(), ["classroom", "demo", "minimal", "zoo"]);
    for name in embedded_names() {
        let text = embedded_text(&name).unwrap();
        let recipe = parse(&name, &text, None).unwrap();
        assert_eq!(recipe.name, name);
        holds(&name, &toml::from_str(&text).unwrap());
        // The decoded recipe, defaults filled in, must hold too.
        let mut decoded = serde_json::to_value(&recipe).unwrap();
        drop_nulls(&mut decoded);
        holds(&name, &decoded);
    }
}

fn drop_nulls(value: &mut Value) {
    if let Value::Object(map) = value {
        map.retain(|_, value| !value.is_null());
        map.values_mut().for_each(drop_nulls);
    }
}

/// Every table of the decoder knows exactly the keys of the schema.
#[test]
fn decoder_and_schema_know_the_same_keys() {
    let schema = schema();
    let tables = [
        ("", "/properties"),
        ("dom0", "/$defs/Dom0/properties"),
        ("dom0.user", "/$defs/User/properties"),
        ("debian", "/$defs/Debian/properties"),
        ("xen", "/$defs/Xen/properties"),
        ("layers", "/$defs/Layers/properties"),
        ("page", "/$defs/Page/properties"),
        ("stream", "/$defs/Stream/properties"),
    ];
    for (table, pointer) in tables {
        let header = if table.is_empty() {
            String::new()
        } else {
            format!("[{table}]\n")
        };
        let problems = parse("r", &format!("{header}zzzz = 1\n"), None).unwrap_err();
        let known: BTreeSet<&str> = problems
            .list
            .iter()
            .find_map(|problem| match &problem.fault {
                Fault::UnknownKey { allowed, .. } => Some(allowed.iter().copied().collect()),
                _ => None,
            })
            .unwrap();
        let properties = schema.pointer(pointer).unwrap().as_object().unwrap();
        assert_eq!(
            known,
            properties.keys().map(String::as_str).collect(),
            "[{table}]"
        );
    }
}

/// What the schema's patterns and ranges accept is what validation accepts.
#[test]
fn schema_and_validation_agree_on_values() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA me";
    let long = "a".repeat(41);
    let public_key = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    let samples = [
        (
            "/name",
            vec![json!("a"), json!("my-image2")],
            vec![
                json!(""),
                json!("A"),
                json!("2a"),
                json!("a b"),
                json!(long),
                json!(3),
            ],
        ),
        (
            "/title",
            vec![json!("Ein Gasthaus")],
            vec![json!(""), json!("a".repeat(61))],
        ),
        (
            "/timeout-secs",
            vec![json!(0), json!(3600)],
            vec![json!(3601), json!(-1), json!("5"), json!(true)],
        ),
        (
            "/flavours",
            vec![json!(["plain"]), json!(["kvm"])],
            vec![
                json!([]),
                json!(["uml"]),
                json!(["xen", "xen"]),
                json!("xen"),
            ],
        ),
        (
            "/outputs",
            vec![json!(["iso"]), json!(["iso", "store"])],
            vec![json!([]), json!(["raw"]), json!(["store", "store"])],
        ),
        (
            "/guests",
            vec![json!([]), json!(["tiny", "./a.toml"])],
            vec![json!(["Tiny"]), json!(["a", "a"]), json!([""]), json!([1])],
        ),
        (
            "/dom0/hostname",
            vec![json!("a"), json!("a-1")],
            vec![
                json!(""),
                json!("-a"),
                json!("a-"),
                json!("a.b"),
                json!("a".repeat(64)),
            ],
        ),
        (
            "/dom0/locale",
            vec![json!("C.UTF-8"), json!("de_DE.UTF-8")],
            vec![json!("de_DE"), json!("C"), json!("x.UTF-8")],
        ),
        (
            "/dom0/keymap",
            vec![json!("de"), json!("cz-qwertz")],
            vec![json!(""), json!("../de"), json!("De"), json!("-")],
        ),
        (
            "/dom0/packages",
            vec![json!(["vim", "g++", "libc6.1"])],
            vec![
                json!(["v"]),
                json!(["Vim"]),
                json!(["vim", "vim"]),
                json!(["a b"]),
            ],
        ),
        (
            "/dom0/kernel-options",
            vec![json!(["quiet", "a=b,c"])],
            vec![json!(["a b"]), json!(["a;b"]), json!(["$x"]), json!([""])],
        ),
        (
            "/dom0/user/name",
            vec![json!("jo")],
            vec![json!(""), json!("Jo"), json!("j o"), json!("a".repeat(33))],
        ),
        (
            "/dom0/user/password",
            vec![json!("geheim")],
            vec![json!(""), json!("a".repeat(129))],
        ),
        (
            "/dom0/user/ssh-keys",
            vec![json!([key])],
            vec![json!(key), json!(["a".repeat(20_000)])],
        ),
        ("/debian/suite", vec![json!("trixie")], vec![json!("sid")]),
        (
            "/debian/mirror",
            vec![json!("http://m.example/debian"), json!("https://m/")],
            vec![json!("ftp://m"), json!("http://u@m"), json!("http://a b")],
        ),
        (
            "/debian/components",
            vec![json!(["main", "contrib", "non-free", "non-free-firmware"])],
            vec![json!([]), json!(["universe"])],
        ),
        (
            "/xen/options",
            vec![json!(["dom0_mem=1G,max:1G"])],
            vec![json!(["a'b"])],
        ),
        (
            "/layers/release-level",
            vec![json!(1), json!(22)],
            vec![json!(0), json!(23), json!(1.5)],
        ),
        (
            "/stream/urls",
            vec![
                json!([
                    "https://a.example/store",
                    "http://[2001:db8::1]:8000/?a=b&c"
                ]),
                json!([]),
            ],
            vec![
                json!(["ftp://a"]),
                json!(["http://a", "http://a"]),
                json!(["http://a b"]),
                json!(["http://a/$x"]),
                json!(["http://a/{x}"]),
                json!(["http://"]),
                json!([format!("http://{}", "a".repeat(257))]),
            ],
        ),
        (
            "/stream/public-keys",
            vec![json!([public_key])],
            vec![
                json!(["RWshort"]),
                json!([public_key, public_key]),
                json!(public_key),
            ],
        ),
        (
            "/stream/profile",
            vec![json!("ready"), json!("none")],
            vec![json!(""), json!("A"), json!("a b")],
        ),
        (
            "/stream/profiles",
            vec![json!([]), json!(["ready=a/b c.profile", "desktop=x"])],
            vec![
                json!(["ready"]),
                json!(["=x"]),
                json!(["ready="]),
                json!(["Ready=x"]),
                json!(["ready=x\u{1b}"]),
                json!(["ready=x", "ready=x"]),
            ],
        ),
    ];
    for (pointer, good, bad) in samples {
        let good = good.into_iter().map(|value| (value, true));
        for (value, holds) in good.chain(bad.into_iter().map(|value| (value, false))) {
            let mut recipe = json!({
                "name": "a", "title": "a", "timeout-secs": 5, "flavours": ["xen"], "guests": [], "outputs": ["iso"],
                "dom0": {"hostname": "a", "locale": "C.UTF-8", "keymap": "de", "packages": [], "kernel-options": [],
                         "user": {"name": "jo", "password": "x", "ssh-keys": []}},
                "debian": {"suite": "trixie", "mirror": "http://m/", "components": ["main"]},
                "xen": {"options": []}, "layers": {"release-level": 5},
                "stream": {"urls": ["http://a/"], "public-keys": [], "profile": "ready", "profiles": []},
            });
            *recipe.pointer_mut(pointer).unwrap() = value.clone();
            let text = toml::to_string(&recipe).unwrap();
            assert_eq!(
                validator.is_valid(&recipe),
                holds,
                "the schema on {pointer} = {value}"
            );
            assert_eq!(
                parse("r", &text, None).is_ok(),
                holds,
                "the parser on {pointer} = {value}"
            );
        }
    }
}

#[test]
fn a_digest_knows_what_is_said_not_how() {
    let a = parse(
        "a",
        "name = \"x\"\ntitle = \"X\"\n[layers]\nrelease-level = 12\n",
        None,
    )
    .unwrap();
    let b = "# c\ntitle = 'X'\nlayers = {}\nname=\"x\" # d\n[debian]\nmirror = \"http://m/\"\n";
    let b = parse("b", b, None).unwrap();
    assert_eq!(
        a.digest(),
        b.digest(),
        "layout, defaults and mirrors do not count"
    );
    let d =
        "name = \"x\"\ntitle = \"X\"\noutputs = [\"net-iso\"]\n[stream]\nurls = [\"http://m/\"]\n";
    let d = parse("d", d, None).unwrap();
    assert_eq!(a.digest(), d.digest(), "nor do other outputs");
    let usual = "name = \"x\"\ntitle = \"X\"\n[page]\nport = 8443\n";
    assert_eq!(a.digest(), parse("e", usual, None).unwrap().digest());
    let open = parse("f", &format!("{usual}enabled = true\n"), None).unwrap();
    assert_ne!(a.digest(), open.digest(), "an open page is in the image");
    let german = "name = \"x\"\ntitle = \"X\"\n[dom0]\nkeymap = \"de\"\n";
    assert_ne!(
        a.digest(),
        parse("g", german, None).unwrap().digest(),
        "a layout is in the image"
    );
    let c = parse("c", "name = \"x\"\ntitle = \"Y\"\n", None).unwrap();
    assert_ne!(a.digest(), c.digest());
    // All that is derived from the digest (GUIDs, serial numbers, salts) changes with it: say so in the changelog.
    assert_eq!(
        a.digest_hex(),
        "049ba15125c53c5fef77a39bfdbc9180ac9606cd34a2688fa854bd58e2affd8d"
    );
}

#[test]
fn a_password_is_hashed_the_same_each_time_and_told_to_no_log() {
    let mut recipe = demo();
    let hash = recipe.user_password_hash().unwrap();
    assert!(hash.starts_with("$6$"), "{hash}");
    assert_eq!(Some(&hash), demo().user_password_hash().as_ref());
    assert!(!format!("{recipe:?}").contains("password: Some(\"gasthaus\")"));
    let user = recipe.dom0.user.as_mut().unwrap();
    user.password = None;
    assert_eq!(recipe.user_password_hash().unwrap(), "!");
    recipe.dom0.user.as_mut().unwrap().password_hash = Some("$y$j9T$abc$def".into());
    assert_eq!(recipe.user_password_hash().unwrap(), "$y$j9T$abc$def");
    recipe.dom0.user = None;
    assert_eq!(recipe.user_password_hash(), None);
}

#[test]
fn names_are_held_against_the_embedded_ones() {
    let names = Names {
        guests: vec!["debian".into(), "tiny".into()],
        overlays: vec!["kiosk".into()],
        keymaps: vec!["de".into(), "de-deadkeys".into(), "fr".into()],
    };
    let text = "name = \"x\"\ntitle = \"X\"\nguests = [\"tinny\", \"./own.toml\"]\n\
                [dom0]\noverlays = [\"kiosk\", \"zzz\"]\nkeymap = \"de-deadkey\"\n";
    assert_eq!(
        parse("r.toml", text, Some(&names)).unwrap_err().to_string(),
        "r.toml:3:11: `guests[0]` is `tinny`; allowed: `debian`, `tiny`, or a path (with a `/`); did you mean `tiny`?\n\
         r.toml:5:22: `dom0.overlays[1]` is `zzz`; allowed: `kiosk`, or a path (with a `/`)\n\
         r.toml:6:10: `dom0.keymap` is `de-deadkey`; allowed: `de`, `de-deadkeys`, `fr`; did you mean `de-deadkeys`?"
    );
    assert_eq!(
        parse("r", text, None).unwrap().guests[1],
        Reference::Path("./own.toml".into())
    );
}

#[test]
fn hostile_input_is_refused_in_little_time_and_space() {
    let deep = format!("a = {}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_tables = format!("{}a = 1{}", "b = {".repeat(50_000), "}".repeat(50_000));
    let dotted = format!("[{}a]", "a.".repeat(100_000));
    let long_key = format!("{} = 1", "k".repeat(500_000));
    let many_keys = (0..20_000).fold(String::new(), |mut text, n| {
        let _ = writeln!(text, "k{n} = 1");
        text
    });
    let many_items = format!(
        "name = \"a\"\ntitle = \"a\"\n[dom0]\npackages = [{}]",
        "\"aa\",".repeat(150_000)
    );
    let huge = " ".repeat(MAX_RECIPE_BYTES + 1);
    let long = [
        &deep,
        &deep_tables,
        &dotted,
        &long_key,
        &many_keys,
        &many_items,
        &huge,
    ];
    let short = ["\0", "\u{feff}", "=", "\"", "[[[", "", "\"\\u001b\" = 1"];
    for text in long.into_iter().map(String::as_str).chain(short) {
        let told = parse("r", text, None).unwrap_err().to_string();
        assert!(told.len() < 64 * 1024, "{} bytes of problems", told.len());
        assert!(!told.contains('\u{1b}'), "{told}");
    }
    assert_eq!(
        parse("r", &huge, None).unwrap_err().to_string(),
        "r: 1048577 bytes; allowed: at most 1048576 bytes"
    );
}

/// Cheap company for the fuzz target: the demo recipe with bytes changed, cut and doubled by a fixed rule.
#[test]
fn a_damaged_recipe_never_panics() {
    let good = embedded_text("demo").unwrap().into_bytes();
    let mut state = 1u64;
    let mut next = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..2000 {
        let mut bytes = good.clone();
        for _ in 0..=next(4) {
            let (at, other) = (next(bytes.len()), next(bytes.len()));
            match next(4) {
                0 => bytes[at] = b"\"'[]{}=.#\n\\0a\x1b"[next(14)],
                1 => drop(bytes.drain(at.min(other)..at.max(other))),
                2 => bytes.extend_from_within(at.min(other)..at.max(other)),
                _ => bytes.swap(at, other),
            }
            if bytes.is_empty() {
                break;
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Err(problems) = parse("r", &text, None) {
            let told = problems.to_string();
            assert!(
                !told.chars().any(|c| c.is_control() && c != '\n'),
                "{told:?}"
            );
        }
    }
}
