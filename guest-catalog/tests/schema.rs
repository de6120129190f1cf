//! The committed JSON schema is the one the types give. `GUEST_SCHEMA_WRITE=1` renews the file.
use guest_catalog::{SCHEMA_JSON, generate_schema};

#[test]
fn committed_schema_is_current() {
    let generated = generate_schema();
    if std::env::var_os("GUEST_SCHEMA_WRITE").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/guest.schema.json");
        std::fs::write(path, &generated).expect("the schema file is writable");
        return;
    }
    assert_eq!(
        SCHEMA_JSON, generated,
        "guest.schema.json is stale: GUEST_SCHEMA_WRITE=1 cargo test -p guest-catalog --test schema"
    );
}
