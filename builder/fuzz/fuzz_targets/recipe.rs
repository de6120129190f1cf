//! Any text as a recipe: an error is fine, a panic is not; what is accepted can be hashed, told and used.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    match gasthaus::recipe::parse("fuzz.toml", text, None) {
        Ok(recipe) => {
            assert!(recipe.validate().is_empty());
            assert_eq!(recipe.digest_hex().len(), 64);
            // It goes into a line of `/etc/shadow`.
            assert!(
                !recipe
                    .user_password_hash()
                    .unwrap_or_default()
                    .contains([':', '\n'])
            );
        }
        Err(problems) => {
            assert!(!problems.list.is_empty());
            // Nothing of the recipe reaches a terminal as a control character.
            assert!(
                !problems
                    .to_string()
                    .chars()
                    .any(|c| c.is_control() && c != '\n')
            );
        }
    }
});
