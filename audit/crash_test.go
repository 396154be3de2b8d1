package audit

func crashChildMain() {}
