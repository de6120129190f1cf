//! A container image, pushed to a real registry, pulled from it over TLS and booted with our kernel.

use std::fs;
use std::path::Path;

use boot_tests::registry::{BASIC, Registry, gasthaus, push, push_manifest, said};
use boot_tests::steps::tell;
use serde_json::json;

/// What a tag stands for is held by the lock file, wherever the tag goes then.
fn the_lock_holds_it(registry: &Registry, dir: &Path, definition: &str, list: &serde_json::Value) {
    let tagged: Vec<&str> = definition
        .lines()
        .filter(|line| !line.starts_with("digest = "))
        .collect();
    fs::create_dir(dir.join("web")).unwrap();
    fs::write(dir.join("web/guest.toml"), tagged.join("\n")).unwrap();
    let recipe = dir.join("house.toml");
    fs::write(
        &recipe,
        "name = \"house\"\ntitle = \"House\"\nguests = [\"./web/guest.toml\"]\n",
    )
    .unwrap();
    let out = dir.join("out");
    let fetch = || {
        let (recipe, out) = (recipe.to_str().unwrap(), out.to_str().unwrap());
        let output = registry.gasthaus(dir, &["build", recipe, "--until", "fetch", "--out", out]);
        assert!(output.status.success(), "{}", said(&output));
        fs::read_to_string(dir.join("gasthaus.lock")).unwrap()
    };
    let locked = fetch();
    let held = format!("url = \"docker://{}/house/web@sha256:", registry.host);
    assert!(locked.contains(&held), "{locked}");
    let mut moved = list.clone();
    moved["annotations"] = json!({ "moved": "yes" });
    let kind = "application/vnd.oci.image.index.v1+json";
    let (digest, _) = push_manifest(registry, dir, "1", kind, &moved);
    assert!(fetch() == locked && !locked.contains(&digest));
}

#[test]
#[ignore = "boots a guest: run ci/test guests"]
fn an_image_in_a_registry_is_a_guest() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let registry = Registry::start(dir);
    let list = push(&registry, dir);
    let image = format!("docker://{}/house/web:1", registry.host);
    let folder = dir.join("guest");
    let folder_text = folder.to_str().unwrap();
    let words = |image: &str| {
        let text = format!("guest add {image} --name web --port 80 --to {folder_text}");
        text.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    let add = |image: &str| {
        let words = words(image);
        registry.gasthaus(dir, &words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    // Nobody vouches for its certificate.
    let unknown = words(&image);
    let unknown: Vec<&str> = unknown.iter().map(String::as_str).collect();
    let refused = said(&gasthaus(dir, &unknown).output().unwrap());
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    // Nobody has logged in.
    let refused = said(&add(&image));
    assert!(
        refused.contains("does not let us read")
            && refused.contains("it asks for a name and a password"),
        "{refused}"
    );
    registry.log_in(dir, "YW5uYTp3cm9uZw==");
    let refused = said(&add(&image));
    assert!(refused.contains("answered with status 401"), "{refused}");
    registry.log_in(dir, BASIC);
    let refused = said(&add(&format!("docker://{}/house/web:none", registry.host)));
    assert!(
        refused.contains("house/web:none` is not there"),
        "{refused}"
    );

    let output = add(&image);
    assert!(output.status.success(), "{}", said(&output));
    let definition = folder.join("guest.toml");
    let text = fs::read_to_string(&definition).unwrap();
    assert!(
        text.contains(&image) && text.contains("digest = \"sha256:"),
        "{text}"
    );
    let health = "http = { port = 80, expect = \"<\" }";
    let all = "console = \"the container speaks as 0, hello, in /srv\"\nhttp = { port = 80, expect = \"a page of the container web\" }\ntcp = { port = 80 }";
    assert!(text.contains(health), "{text}");
    fs::write(&definition, text.replace(health, all)).unwrap();
    the_lock_holds_it(&registry, dir, &text, &list);
    // What was pulled is enough: the registry is gone.
    drop(registry);
    let definition = definition.to_str().unwrap();
    let words = format!("guest try {definition} --check --accel tcg --offline --wait 600");
    let words: Vec<&str> = words.split(' ').collect();
    let output = gasthaus(dir, &words).output().unwrap();
    tell(said(&output).trim_end());
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("guest `web` is up after "));
}
