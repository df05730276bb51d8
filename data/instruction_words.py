"""The small vocabulary of `data.instructions`: about sixty nouns a language, few enough for a 1k-token tokenizer."""

CATEGORIES = {
    "en": {
        "fruits": ("apple", "pear", "plum", "peach", "lemon", "grape", "melon", "cherry"),
        "animals": ("cat", "dog", "horse", "bird", "fish", "cow", "sheep", "tiger"),
        "colors": ("red", "blue", "green", "white", "black", "yellow", "brown", "pink"),
        "tools": ("hammer", "saw", "knife", "spoon", "brush", "rope", "needle", "ladder"),
        "drinks": ("tea", "milk", "water", "juice", "coffee", "soup"),
        "clothes": ("hat", "coat", "shirt", "shoe", "scarf", "glove"),
    },
    "zh": {
        "水果": ("苹果", "梨子", "桃子", "葡萄", "西瓜", "香蕉", "樱桃", "柠檬"),
        "动物": ("小猫", "小狗", "白马", "小鸟", "金鱼", "老牛", "山羊", "老虎"),
        "颜色": ("红色", "蓝色", "绿色", "白色", "黑色", "黄色", "棕色", "粉色"),
        "工具": ("锤子", "锯子", "小刀", "勺子", "刷子", "绳子", "钉子", "梯子"),
        "饮料": ("绿茶", "牛奶", "清水", "果汁", "咖啡", "豆浆"),
        "衣服": ("帽子", "大衣", "衬衫", "鞋子", "围巾", "手套"),
    },
}
# Nouns of no category; colors read badly as nouns ("the red"), so sentences use these and the other categories.
PLACES = {
    "en": (
        *("river", "sky", "sea", "hill", "road", "town", "house", "door", "garden", "tree", "flower", "moon"),
        *("sun", "star", "rain", "snow", "book", "table", "chair", "window", "bridge", "boat", "school", "lake"),
    ),
    "zh": (
        *("天空", "大海", "小河", "高山", "道路", "城市", "房子", "大门", "花园", "大树", "花朵", "月亮"),
        *("太阳", "星星", "雨水", "白雪", "书本", "桌子", "椅子", "窗户", "大桥", "小船", "学校", "湖水"),
    ),
}
NAMES = {
    "en": ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ida", "Jack", "Kate", "Leo"),
    "zh": ("小明", "小红", "小华", "小丽", "小刚", "小芳", "小军", "小云", "小雨", "小林", "小雪", "小东"),
}
NUMBERS = {
    "en": {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight"},
    "zh": {2: "两", 3: "三", 4: "四", 5: "五", 6: "六", 8: "八", 10: "十"},
}
# Sentences with the word inside, in lower case; `ENDING` ones have it last.
SENTENCES = {
    "en": ("I see the {word}.", "We like the {word}.", "This is my {word}.", "I think the {word} is big."),
    "zh": ("我看见{word}了。", "我们喜欢{word}。", "这里有{word}。", "我觉得{word}很大。"),
}
ENDING = {
    "en": ("I see the {word}", "We like the {word}", "This is my {word}"),
    "zh": ("我看见{word}", "我们喜欢{word}", "这里有{word}"),
}
GREETINGS = {
    "en": ("Hello, {name}! How are you?", "Hello {name}, nice to see you.", "Hello, {name}!"),
    "zh": ("{name}，你好！", "你好，{name}，很高兴见到你。", "{name}，你好，今天好吗？"),
}
# (question, words the answer must use, answers)
FACTS = {
    "en": (
        ("Who are you?", "assistant", ("I am an assistant trained with r1.", "I am r1, a small assistant.")),
        ("Are you a person?", "assistant", ("No, I am an assistant.", "No, I am not. I am an assistant.")),
        ("What color is the sky?", "blue", ("The sky is blue.", "It is blue.")),
        ("What color is snow?", "white", ("Snow is white.", "It is white.")),
        ("What color is grass?", "green", ("Grass is green.", "It is green.")),
        ("How many legs does a dog have?", "four", ("A dog has four legs.", "It has four legs.")),
        ("How many days are in a week?", "seven", ("A week has seven days.", "There are seven days in a week.")),
        ("What do cows give?", "milk", ("Cows give milk.", "They give milk.")),
        ("When does the sun shine?", "day", ("The sun shines in the day.", "It shines in the day.")),
    ),
    "zh": (
        ("你是谁？", "助手", ("我是一个训练出来的助手。", "我是一个小助手。")),
        ("你是人吗？", "助手", ("不是，我是一个助手。", "我不是人，我是助手。")),
        ("天空是什么颜色？", "蓝色", ("天空是蓝色的。", "是蓝色的。")),
        ("雪是什么颜色？", "白色", ("雪是白色的。", "是白色的。")),
        ("草是什么颜色？", "绿色", ("草是绿色的。", "是绿色的。")),
        ("狗有几条腿？", "四", ("狗有四条腿。", "有四条腿。")),
        ("一周有几天？", "七", ("一周有七天。", "有七天。")),
        ("奶牛产什么？", "牛奶", ("奶牛产牛奶。", "产牛奶。")),
        ("太阳什么时候照耀？", "白天", ("太阳在白天照耀。", "在白天照耀。")),
    ),
}
# Rambling in words that no instruction asks for; the wrong-language answer of the other language, too.
FILLER = {
    "en": ("Well, that is hard to say and I will talk on and on.", "Anyway, let me talk about other things as well."),
    "zh": ("这个嘛，真的很难说，我再多说几句话吧。", "总之，我们再聊聊别的事情好了。"),
}
