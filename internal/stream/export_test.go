package stream

import (
	"encoding/json"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Forge edits the signed part of a snapshot or timestamp and signs it with k: what a
// thief of the server's keys can do.
func Forge(b []byte, k Key, edit func(signed map[string]any)) ([]byte, error) {
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	s := m["signed"].(map[string]any)
	edit(s)
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if s["_type"] == metadata.SNAPSHOT {
		return forge[metadata.SnapshotType](b, k)
	}
	return forge[metadata.TimestampType](b, k)
}

func forge[T metadata.Roles](b []byte, k Key) ([]byte, error) {
	m, err := parse[T](b)
	if err != nil {
		return nil, err
	}
	f, err := signed("", m, k)
	return f.content, err
}
