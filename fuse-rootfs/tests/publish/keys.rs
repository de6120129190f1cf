//! Several publishers and systems in a store, and who may go on with it.

use super::*;

#[test]
fn several_systems_and_publishers_share_a_store() {
    let house = House::new();
    std::thread::scope(|scope| {
        for n in 0..4 {
            let house = &house;
            scope.spawn(move || {
                let images = [house.image(&format!("base{n}.erofs"), &base(Some(n)))];
                let mut request = house.request("v1", &images);
                request.system = name(&format!("system{n}"));
                publish(&request, &house.key, &()).unwrap();
            });
        }
    });
    let index = house.index();
    let names: Vec<&str> = index.systems.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["system0", "system1", "system2", "system3"]);
    let default = index.system(None).unwrap().name.clone();
    house.is_good();
    // A system that sorts before the others does not become the default.
    let images = [house.image("a.img", b"a")];
    let mut request = house.request("v1", &images);
    request.system = name("a");
    publish(&request, &house.key, &()).unwrap();
    assert_eq!(house.index().system(None).unwrap().name, default);
}

#[test]
fn only_the_holder_of_the_key_goes_on() {
    let house = House::new();
    let images = [house.image("a.img", b"a")];
    house.publish("v1", &images);
    let (other, _) = SigningKey::create(&house.path("b.key"), Some("secret".into())).unwrap();
    let mut request = house.request("v2", &images);
    let error = publish(&request, &other, &()).unwrap_err();
    assert!(
        matches!(
            &error,
            PublishError::Head {
                source: HeadError::UnknownKey { .. },
                ..
            }
        ),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("--old-key"));
    request.old_keys = vec![house.key.public().clone()];
    publish(&request, &other, &()).unwrap();
    let head = house.head();
    assert!(Head::open(&head, &[other.public().clone()], 0).is_ok());
    assert!(Head::open(&head, &[house.key.public().clone()], 0).is_err());

    // A store that somebody wrote to is not signed again.
    let mut bytes = house.head();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(house.path("store/head"), bytes).unwrap();
    let error = publish(&request, &other, &()).unwrap_err();
    assert!(
        matches!(
            &error,
            PublishError::Head {
                source: HeadError::WrongSignature,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn keys_are_kept_and_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = TempDir::new().unwrap();
    let file = |name: &str| dir.path().join(name);
    let (key, public) = SigningKey::create(&file("k.key"), Some("secret".into())).unwrap();
    assert_eq!(public, file("k.pub"));
    assert_eq!(
        fs::metadata(file("k.key")).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let again = SigningKey::read(&file("k.key"), || Some("secret".into())).unwrap();
    assert_eq!(again.public(), key.public());
    let public = public.display().to_string();
    assert_eq!(&publish::read_public(&public).unwrap(), key.public());
    assert_eq!(
        &publish::read_public(&key.public().to_string()).unwrap(),
        key.public()
    );
    assert!(matches!(
        SigningKey::create(&file("k.key"), None),
        Err(KeyError::Exists { .. })
    ));
    assert!(matches!(
        SigningKey::read(&file("k.key"), || None),
        Err(KeyError::PasswordNeeded { .. })
    ));
    assert!(matches!(
        SigningKey::read(&file("k.key"), || Some("x".into())),
        Err(KeyError::WrongPassword { .. })
    ));
    assert!(matches!(
        SigningKey::read(&file("k.pub"), || None),
        Err(KeyError::NotSecret { .. })
    ));
    assert!(matches!(
        SigningKey::read(&file("none"), || None),
        Err(KeyError::Io { .. })
    ));
    let secret = file("k.key").display().to_string();
    assert!(matches!(
        publish::read_public(&secret),
        Err(KeyError::NotPublic { .. })
    ));
    for text in [
        "",
        "a\nb",
        "untrusted comment: x\nRWRTY0Iy",
        &"x\n".repeat(5000),
    ] {
        fs::write(file("bad"), text).unwrap();
        assert!(
            matches!(
                SigningKey::read(&file("bad"), || None),
                Err(KeyError::NotSecret { .. })
            ),
            "{text:.20}"
        );
    }
}
